"""What a curated dataset is made of: one dataclass a stage, collected in `DataConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from data_pipeline.sources.config import PackagedWikipedia, PythonCode, Source

SPECIAL_TOKENS = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")


@dataclass(frozen=True)
class CollectionConfig:
    """How raw text is cut into documents and intermediate shards."""

    shard_bytes: int = 32_000_000
    """Text in one intermediate shard and, where files are smaller, in one task, in bytes.

    A task is the unit of work and of resuming. No input file is divided: a larger one is a task of its own, which after
    an interruption begins anew.
    """
    max_document_bytes: int = 32_768
    """Longer prose is cut at blank lines near this size, in bytes; longer code stays whole."""
    max_record_bytes: int = 4_000_000
    """A longer line, JSON record or source file is set aside unread, which bounds memory; in bytes."""


@dataclass(frozen=True)
class CleaningConfig:
    """Repairs that keep the meaning of a text."""

    max_blank_lines: int = 2
    """Longer runs of blank lines are shortened to this many (prose and code)."""
    max_wiki_holes: int = 2
    """Encyclopedia text is dropped when more formulas or templates were lost than this in 1,000 characters."""
    drop_boilerplate: bool = True
    """Remove lines of prose that are buttons, notices and links of a web page."""
    mask_personal: bool = True
    """Replace e-mail addresses, public IP addresses and phone numbers by placeholders."""
    mask_secrets: bool = True
    """Replace keys and tokens in the formats of well-known services by a placeholder."""


STOP_WORDS = {
    "en": ("the", "be", "to", "of", "and", "that", "have", "with"),
    "es": ("de", "la", "que", "el", "en", "y", "los", "con"),
    "fr": ("de", "la", "le", "et", "les", "des", "en", "est"),
    "de": ("der", "die", "und", "von", "den", "mit", "ist", "das"),
    "pt": ("de", "que", "o", "do", "da", "em", "para", "com"),
    "it": ("di", "e", "il", "che", "la", "per", "non", "con"),
}


@dataclass(frozen=True)
class MeasureConfig:
    """What the measures themselves depend on. A change measures every text again; a changed filter never does."""

    candidate_languages: tuple[str, ...] = ()
    """Languages that a text can be found to be in, as ISO 639 codes; empty means all 139. Name those that you expect,
    and Spanish is never taken for Extremaduran; name one, and all text is taken for it."""
    stop_words: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(STOP_WORDS))
    """Frequent words of each language: Gopher's eight for English, eight alike for the others, as in FineWeb-2."""
    reference_sources: tuple[str, ...] = ()
    """Names of sources whose prose is what good text reads like: a character model is trained on them, and all prose is
    scored by it, as in CCNet (Wenzek et al. 2020). Empty scores nothing."""
    reference_bytes: int = 10_000_000
    """Text to train that model on, in bytes."""


@dataclass(frozen=True)
class ProseFilters:
    """Rules for natural language. Gopher is Rae et al. 2021 (table A1), FineWeb is Penedo et al. 2024."""

    min_words: int = 50
    """Gopher: fewer words are dropped."""
    max_words: int = 100_000
    """Gopher: more words are dropped."""
    min_mean_word_length: float = 3.0
    """Gopher: mean length of a word, in characters."""
    max_mean_word_length: float = 10.0
    """Gopher: mean length of a word, in characters."""
    max_symbol_ratio: float = 0.1
    """Gopher: number of `#`, or of ellipses, per word and punctuation mark."""
    max_bullet_lines: float = 0.9
    """Gopher: fraction of lines that begin with a bullet."""
    max_ellipsis_lines: float = 0.3
    """Gopher: fraction of lines that end with an ellipsis."""
    min_alphabetic_words: float = 0.8
    """Gopher: fraction of words and punctuation marks with at least one letter."""
    min_stop_words: int = 2
    """Gopher: how many different words of `measures.stop_words` a text must contain; other languages are passed."""
    max_duplicate_lines: float = 0.3
    """Gopher: fraction of lines, and of paragraphs, that repeat an earlier one."""
    max_duplicate_line_characters: float = 0.2
    """Gopher: fraction of characters in lines, and in paragraphs, that repeat an earlier one."""
    max_top_ngram: tuple[float, float, float] = (0.20, 0.18, 0.16)
    """Gopher: fraction of characters in the most frequent 2-, 3- and 4-gram."""
    max_duplicate_ngrams: tuple[float, float, float, float, float, float] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    """Gopher: fraction of characters in repeated 5-, 6-, 7-, 8-, 9- and 10-grams."""
    min_words_for_repetition: int = 50
    """Shorter texts are not measured for repeated n-grams: there a name that occurs twice is already too much."""
    min_punctuated_lines: float = 0.12
    """FineWeb: fraction of lines that end in terminal punctuation."""
    max_short_lines: float = 0.67
    """FineWeb: fraction of lines of at most 30 characters."""
    max_newlines_per_word: float = 0.3
    """FineWeb: newlines per word."""
    max_repeated_characters: float = 0.1
    """FineWeb: fraction of characters in lines that repeat an earlier one; 0.1 in the paper, 0.01 in datatrove."""
    min_sentences: int = 0
    """C4: sentences in lines that end like one. C4 asks for 5, and so drops braces, lists, tables and short entries."""
    max_word_characters: int = 1000
    """C4: a longer word marks base64, minified text or a list of links."""
    languages: tuple[str, ...] = ()
    """Languages to keep, as ISO 639 codes; empty keeps all."""
    min_language_probability: float = 0.65
    """DCLM (Li et al. 2024): a text whose language is less certain is dropped."""
    max_toxic_words: float = 0.05
    """Fraction of words that stand in the lexicon of slurs and obscenities (English, Spanish and French)."""
    min_different_toxic_words: int = 3
    """A text with fewer different ones is never dropped for them."""
    max_bits_per_character: float | None = None
    """With `measures.reference_sources`: what the reference's character model makes of the text."""
    max_bits_percentile: float = 100.0
    """The same as a percentile of all prose that was measured: CCNet's head is 30, its head and middle are 60."""


@dataclass(frozen=True)
class CodeFilters:
    """Rules for source code. StarCoder is Li et al. 2023 (section 3.2), SantaCoder is Ben Allal et al. 2023."""

    max_line_characters: int = 1000
    """StarCoder: longest line."""
    max_mean_line_characters: float = 100.0
    """StarCoder: mean length of a line."""
    min_alphanumeric: float = 0.25
    """StarCoder: fraction of letters and digits among all characters."""
    min_bytes: int = 100
    """Smaller files are dropped: they hold an import or nothing."""
    max_bytes: int = 1_000_000
    """Larger files are dropped."""
    drop_generated: bool = True
    """CodeParrot (Tunstall et al. 2022): drop files whose first lines say that a program wrote them."""
    must_parse: bool = True
    """Drop Python files that the running interpreter cannot parse, such as Python 2."""
    drop_xml: bool = True
    """StarCoder: drop files, other than XSLT, with an XML header in the first 100 characters."""
    min_visible_text: float = 0.2
    """StarCoder: fraction of an HTML file's characters that a browser shows."""
    min_visible_characters: int = 100
    """StarCoder: characters of an HTML file that a browser shows."""
    min_comments: float = 0.0
    """Fraction of characters in comments and docstrings of Python, Java, JavaScript and TypeScript; 0.01 in SantaCoder,
    none in StarCoder."""
    max_comments: float = 1.0
    """The same from above; 0.8 in SantaCoder, none in StarCoder."""


@dataclass(frozen=True)
class FilterConfig:
    """Quality filters, most of them by kind of text."""

    min_length: int = 0
    """A shorter document of any kind is dropped, in characters."""
    max_length: int | None = None
    """A longer one too, in characters."""
    prose: ProseFilters = field(default_factory=ProseFilters)
    """Rules for natural language, encyclopedia text included."""
    code: CodeFilters = field(default_factory=CodeFilters)
    """Rules for source code."""


@dataclass(frozen=True)
class DeduplicationConfig:
    """Exact and near duplicates: MinHash with banding (Broder 1997), then the true Jaccard similarity.

    Repeated paragraphs are removed only on request. CCNet (Wenzek et al. 2020) and Dolma (Soldaini et al. 2024) remove
    them, to rid web pages of menus and notices. FineWeb (Penedo et al. 2024) did the same with lines over a whole
    corpus, after MinHash, and found that models became worse. A text without one of its paragraphs may not make sense,
    and the line rules of cleaning and filters take most of what stands around a text.
    """

    threshold: float = 0.8
    """Jaccard similarity of word shingles from which two documents are duplicates."""
    shingle_words: int = 5
    """Words in a shingle."""
    bands: int = 14
    """Bands of the signature; 14 x 8 finds a pair of similarity 0.8 with probability 0.92, one of 0.9 always."""
    rows: int = 8
    """Rows in a band."""
    paragraphs: bool = False
    """Remove paragraphs of prose that stand in a better document too; for web text without other cleaning."""
    paragraph_characters: int = 100
    """Shorter paragraphs stay wherever they are."""
    paragraph_max_loss: float = 0.5
    """A document that would lose more than this fraction of its bytes is dropped whole."""


@dataclass(frozen=True)
class DecontaminationConfig:
    """Evaluation texts that must not be trained on: n-gram overlap after GPT-3 (Brown et al. 2020, appendix C)."""

    patterns: tuple[str, ...] = ()
    """Files of evaluation texts, in any format of the source `TextFiles`; without any, nothing is done."""
    text_fields: tuple[str, ...] = ("text",)
    """Fields of a JSON line, or columns of a table, that hold text or lists of texts, such as a question and its
    answers."""
    ngram_words: int = 13
    """Length of the n-grams in words; case and punctuation do not count."""
    min_words: int = 8
    """An evaluation text shorter than an n-gram counts as a whole if it has this many words; else it is left out."""
    min_matches: int = 1
    """A document that shares this many n-grams with one evaluation text, or all of them, is dropped."""
    max_documents: int = 10
    """An n-gram in more documents than this is no sign of a copy: licences, proverbs and the like are everywhere."""


@dataclass(frozen=True)
class SplitConfig:
    """Which documents are held out for validation."""

    validation_fraction: float = 0.02
    """Fraction of each source's bytes that is held out, in whole texts and repositories, and at least one."""
    leak_threshold: float = 0.5
    """A held-out text this similar to a training text, or contained in one to this degree, is dropped."""
    seed: int = 0
    """Another seed holds out other documents."""


@dataclass(frozen=True)
class TokenizerConfig:
    """SentencePiece BPE, trained on the training split; or an encoding of tiktoken, or another tokenizer, as it is."""

    kind: Literal["sentencepiece", "tiktoken", "existing"] = "sentencepiece"
    """Which; the fields below but `encoding` and `path` are for SentencePiece."""
    path: str | None = None
    """With existing: a tokenizer file, the directory of a Hugging Face model, a run or a dataset that has one, or
    hf://ORG/NAME for a model of the hub. A model that is trained on from there needs its own tokenizer."""
    encoding: str = "gpt2"
    """With tiktoken: the name of one of its encodings, which it downloads, or a file of ranks (*.tiktoken). A file with
    the name of an encoding, such as cl100k_base.tiktoken, is that encoding; another one cuts text as cl100k_base does,
    and its <|endoftext|> is the id after the last rank."""
    vocab_size: int = 32_768
    """Pieces, with the 256 bytes and the special ids."""
    sample_bytes: int = 100_000_000
    """Text to train on, in bytes, shared equally by the sources."""
    character_coverage: float = 0.9999
    """Rarer characters are spelt in bytes; below 1.0, or byte pieces would never be learned."""
    max_piece_characters: int = 16
    """Longest piece."""


@dataclass(frozen=True)
class ShardConfig:
    """The token files that training reads."""

    max_tokens: int = 100_000_000
    """Tokens in one shard; a longer document gets a shard to itself."""
    target_tokens: int | None = None
    """Stop the training split at the first document that reaches this many; without it, all are kept."""
    seed: int = 0
    """Seed of the order in which documents are mixed."""


@dataclass(frozen=True)
class DataConfig:
    """A curated dataset, from its sources to its token shards."""

    sources: tuple[Source, ...] = (PackagedWikipedia(), PythonCode())
    """Where the text comes from; of two duplicates the one from the earlier source is kept."""
    collection: CollectionConfig = field(default_factory=CollectionConfig)
    """How raw text is cut into documents."""
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    """Repairs that keep the meaning of a text."""
    measures: MeasureConfig = field(default_factory=MeasureConfig)
    """What quality is measured against."""
    filters: FilterConfig = field(default_factory=FilterConfig)
    """Quality filters by kind of text."""
    deduplication: DeduplicationConfig = field(default_factory=DeduplicationConfig)
    """Exact and near duplicates."""
    decontamination: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    """Evaluation texts that must not be trained on."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """What is held out for validation."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """The vocabulary."""
    shards: ShardConfig = field(default_factory=ShardConfig)
    """The token files."""
