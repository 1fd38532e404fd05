"""What the base of translation_es_en.py reads: Spanish and English verses, none beside its translation, and Wikipedia
leads in both languages.

Make the verses first: python -m data_pipeline configs/data/translation_es_en.py
"""

from data_pipeline.config import (
    DataConfig,
    DecontaminationConfig,
    FilterConfig,
    MeasureConfig,
    ProseFilters,
    TokenizerConfig,
)
from data_pipeline.sources.config import PackagedWikipedia, TextFiles

config = DataConfig(
    sources=(
        TextFiles(("data/translation_es_en/texts.jsonl",), name="verses", licence="public domain"),
        PackagedWikipedia(name="wikipedia-en", language="en", max_bytes=3_000_000),
        PackagedWikipedia(name="wikipedia-es", language="es"),
    ),
    measures=MeasureConfig(candidate_languages=("en", "es")),
    # Leads are short, and verses repeat themselves: rules meant for web pages would drop much of both.
    filters=FilterConfig(
        prose=ProseFilters(
            min_words=10,
            min_stop_words=1,
            min_words_for_repetition=100_000,
            min_alphabetic_words=0.7,
            min_punctuated_lines=0.0,
            max_toxic_words=1.0,
        )
    ),
    # What is held out, to test and to validate, in all three versions: `references` has both of English.
    decontamination=DecontaminationConfig(
        patterns=("data/translation_es_en/test.jsonl", "data/translation_es_en/validation.jsonl"),
        text_fields=("source", "references"),
    ),
    tokenizer=TokenizerConfig(vocab_size=8192, sample_bytes=30_000_000),
)
