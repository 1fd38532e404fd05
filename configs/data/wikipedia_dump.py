"""Simple English Wikipedia from its dump: about 250,000 articles, which fit on a laptop.

Download simplewiki-latest-pages-articles.xml.bz2 (about 350 MB) from https://dumps.wikimedia.org/simplewiki/latest/
into dumps/, and leave it compressed. Other languages have directories of their own there, such as eswiki and frwiki;
name the file with --sources.0.patterns. Stop words are known for English, Spanish, French, German, Portuguese and
Italian; those of another language go into `measures.stop_words`, in this file. Needs the data
extra: pip install -c constraints.txt -e '.[data]'.
"""

from data_pipeline.config import DataConfig, FilterConfig, ProseFilters, SplitConfig, TokenizerConfig
from data_pipeline.sources.config import WikipediaDump

config = DataConfig(
    sources=(WikipediaDump(patterns=("dumps/simplewiki-*-pages-articles.xml.bz2",)),),
    # Headings and list items are short lines, and a good article may be short: rules meant for web pages are relaxed.
    filters=FilterConfig(
        prose=ProseFilters(
            min_words=30,
            min_words_for_repetition=100,
            min_alphabetic_words=0.7,
            min_punctuated_lines=0.0,
            max_short_lines=0.9,
        )
    ),
    split=SplitConfig(validation_fraction=0.01),
    tokenizer=TokenizerConfig(vocab_size=16_384, sample_bytes=100_000_000),
)
