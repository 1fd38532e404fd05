"""About 100 million tokens of encyclopedia articles and Python code, streamed from the Hugging Face hub.

Needs the data extra: pip install -c constraints.txt -e '.[data]'. Both data sets can be read without an account.
"""

from data_pipeline.config import DataConfig, SplitConfig, TokenizerConfig
from data_pipeline.sources.config import HubDataset

config = DataConfig(
    sources=(
        HubDataset(
            path="wikimedia/wikipedia",
            subset="20231101.en",
            revision="b04c8d1ceb2f5cd4588862100d08de323dccfbaa",
            name="wikipedia",
            licence="CC-BY-SA-4.0",
            kind="wiki",
            title_column="title",
            origin_column="url",
            max_bytes=230_000_000,
        ),
        HubDataset(
            path="codeparrot/codeparrot-clean",
            name="python",
            licence="per-file",
            kind="code",
            text_column="content",
            origin_column="path",
            licence_column="license",
            # The data set also holds copyleft code; these ask for no more than to be named.
            accepted_licences=("mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "cc0-1.0"),
            max_bytes=200_000_000,
        ),
    ),
    # About 500,000 tokens for validation.
    split=SplitConfig(validation_fraction=0.005),
    tokenizer=TokenizerConfig(vocab_size=32_768, sample_bytes=100_000_000),
)
