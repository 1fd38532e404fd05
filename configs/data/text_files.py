"""Your own text: every .txt and .md file below text/, or wherever --sources.0.patterns points."""

from data_pipeline.config import DataConfig, SplitConfig, TokenizerConfig
from data_pipeline.sources.config import TextFiles

config = DataConfig(
    sources=(TextFiles(patterns=("text/**/*.txt", "text/**/*.md")),),
    split=SplitConfig(validation_fraction=0.05),
    tokenizer=TokenizerConfig(vocab_size=8192, sample_bytes=50_000_000),
)
