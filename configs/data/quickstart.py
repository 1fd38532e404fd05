"""A corpus for a laptop: encyclopedia leads and Python code, about 10 MB of text, curated in well under a minute."""

from data_pipeline.config import (
    DataConfig,
    FilterConfig,
    PackagedWikipedia,
    ProseFilters,
    PythonCode,
    SplitConfig,
    TokenizerConfig,
)

config = DataConfig(
    sources=(
        PackagedWikipedia(),
        # The project's own dependencies: the same code whether or not test or lint tools are installed beside them.
        PythonCode(
            max_bytes=5_500_000,
            # Many short files instead of a few long ones: more programs to learn from and to validate on.
            max_file_bytes=16_384,
            packages=(
                "torch",
                "numpy",
                "scipy",
                "matplotlib",
                "sympy",
                "networkx",
                "wandb",
                "pydantic",
                "rich",
                "tyro",
                "jinja2",
                "requests",
                "fsspec",
                "safetensors",
            ),
        ),
    ),
    # Gopher's rules are meant for web pages. A lead section is complete in a sentence or two and repeats the name of
    # its subject: 50 words would drop one lead in five, and the other two rules one in sixty, all of them good.
    filters=FilterConfig(prose=ProseFilters(min_words=10, min_stop_words=1, min_words_for_repetition=100)),
    # About 100,000 tokens: enough to compare runs, and evaluated within seconds.
    split=SplitConfig(validation_fraction=0.03),
    tokenizer=TokenizerConfig(vocab_size=8192, sample_bytes=10_000_000),
)
