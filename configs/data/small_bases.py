"""What the small base models are trained on: Wikipedia leads, as many in English as in Spanish.

The held-out texts of spanish_parts.py, which fine-tuned models are judged by, are looked for and left out; make them
first: python -m data_pipeline configs/data/spanish_parts.py
"""

from data_pipeline.config import (
    DataConfig,
    DecontaminationConfig,
    FilterConfig,
    MeasureConfig,
    ProseFilters,
    SplitConfig,
    TokenizerConfig,
)
from data_pipeline.sources.config import PackagedWikipedia

config = DataConfig(
    sources=(
        # As much as there is in Spanish.
        PackagedWikipedia(name="wikipedia-en", language="en", max_bytes=3_000_000),
        PackagedWikipedia(name="wikipedia-es", language="es"),
    ),
    measures=MeasureConfig(candidate_languages=("en", "es", "fr", "de", "pt", "it")),
    # As in quickstart.py: a lead is one paragraph, which rules meant for web pages would often drop.
    filters=FilterConfig(
        prose=ProseFilters(
            languages=("en", "es"),
            min_words=10,
            min_stop_words=1,
            min_words_for_repetition=100,
            min_alphabetic_words=0.7,
            min_punctuated_lines=0.0,
        )
    ),
    decontamination=DecontaminationConfig(patterns=("data/spanish_parts/*_held_out.txt",)),
    split=SplitConfig(validation_fraction=0.02),
    tokenizer=TokenizerConfig(vocab_size=4096, sample_bytes=10_000_000),
)
