"""What or who is it: the first sentence of a lead section as the answer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from data_pipeline.questions.articles import Article, sentences
from data_pipeline.questions.config import QuestionsConfig
from data_pipeline.questions.question import Question, generator, states

_SHORTEST, _LONGEST = 40, 300  # of an answer, in characters
_LONGEST_STATEMENT = 600
_LONGEST_OPENING = 40  # what may stand before the subject, as in "In geometry, a sphere is", in characters
_LONGEST_ASIDE = 120  # what may stand between the subject and its verb


@dataclass(frozen=True)
class _Grammar:
    """How a language defines a thing, and asks for it."""

    people: str
    """The topic of articles about people."""
    works: str
    """The topic whose titles may be common words with a capital."""
    articles: str
    plural_articles: tuple[str, ...]
    determiners: str
    """What follows the verb of a definition."""
    names: str
    """A definition that begins so is of a word, not of a thing."""
    connections: str
    """What an aside begins with, between the subject and its verb."""
    verbs: dict[str, bool]
    """Forms of "to be", and whether each is a plural."""
    who: tuple[str, str]
    """With a verb in the singular, and in the plural."""
    what: str
    verb_last: bool
    """Of an indirect question."""
    definitions: tuple[str, ...]
    """Questions; `{asked}` is the question word with the verb, `{clause}` is an indirect question."""
    statements: tuple[str, ...]


_GRAMMARS: dict[str, _Grammar] = {
    "es": _Grammar(
        people="Personas",
        works="Artes",
        articles="el|la|los|las|un|una|unos|unas",
        plural_articles=("los", "las", "unos", "unas"),
        determiners="un|una|unos|unas|uno|el|la|los|las|cualquier|todo|toda|cada",
        names="el término|el nombre|un término|un nombre|una palabra|la palabra|una expresión|uno de los nombres",
        connections=r",| \(| [oyeu] ",
        verbs={"es": False, "fue": False, "era": False, "son": True, "fueron": True, "eran": True},
        who=("quién", "quiénes"),
        what="qué",
        verb_last=False,
        definitions=("¿{Asked} {subject}?", "¿Me puedes decir {clause}?", "Explica {clause}"),
        statements=(
            "Cuenta con detalle {clause}",
            "¿{Asked} {subject}? Responde con detalle.",
            "Quiero saber más: ¿{asked} {subject}?",
        ),
    ),
    "en": _Grammar(
        people="People",
        works="Arts",
        articles="a|an|the",
        plural_articles=(),
        determiners="a|an|the|any|one|two|three|four|five|several",
        names="a term|the term|a name|the name|a word|the word|an umbrella term",
        connections=r",| \(| or | and ",
        verbs={"is": False, "was": False, "are": True, "were": True},
        who=("who", "who"),
        what="what",
        verb_last=True,
        definitions=("{Asked} {subject}?", "Can you tell me {clause}?", "Explain {clause}"),
        statements=(
            "Tell me in detail {clause}",
            "{Asked} {subject}? Answer in detail.",
            "I want to know more: {asked} {subject}?",
        ),
    ),
}
_FUNCTION_WORDS = frozenset(
    "about after among antes based before between caused como cuando cuya cuyo desde donde durante during entre esta "
    "este from hacia hasta into more most other otra otro over para part parte pero property según sino sobre some "
    "such than that their these this those through tiene tipo todo tras type under usada usado used which with "
    "without".split()
)


def definition_questions(
    articles: Sequence[Article], corpus: Sequence[Article], config: QuestionsConfig
) -> Iterator[Question]:
    """For each article that can be asked for: a definition, and a statement with the whole beginning of its lead.

    The `corpus` shows which words are written with a capital.
    """
    grammar, common = _GRAMMARS[config.language], _common_words(corpus)
    for article in articles:
        parts = sentences(article.lead)
        if not _SHORTEST <= len(parts[0]) <= _LONGEST:
            continue
        asked = _asked(article, parts[0], grammar, common)
        fact = shared_words(article, parts[0])
        if asked is None or not fact:
            continue
        drawn = generator(config.seed, "phrasings", article.title)
        for template in drawn.sample(grammar.definitions, config.phrasings):
            yield Question(template.format(**asked), parts[0], fact, "definition", article.title)
        for template in drawn.sample(grammar.statements, config.phrasings):
            question, answer = template.format(**asked), _beginning(parts)
            yield Question(question, answer, "", "description", article.title, statement=True)


def shared_words(article: Article, sentence: str) -> str:
    """The longest run of words of an article's description that stands in `sentence` too, from one word with a meaning
    to another; empty where there is none but the words of the title."""
    words = re.findall(r"\w[\w'’-]*|[^\w\s]", article.description)
    title = {word.lower() for word in re.findall(r"\w+", article.title)}
    ends = [place for place, word in enumerate(words) if _has_meaning(word)]
    runs = [" ".join(words[first : last + 1]) for first in ends for last in ends if first <= last]
    new = [run for run in runs if run in sentence and not {w.lower() for w in run.split() if _has_meaning(w)} <= title]
    return max((run for run in new if states(sentence, run)), key=len, default="")


def _has_meaning(word: str) -> bool:
    return word.isdigit() or (len(word) >= 4 and word.lower() not in _FUNCTION_WORDS)


def _common_words(articles: Iterable[Article]) -> Counter[str]:
    """How often each word stands in small letters, less how often with a capital within a sentence."""
    counts: Counter[str] = Counter()
    for article in articles:
        words = article.lead.split()
        counts.update(word.strip(".,;:()") for word in words if word[0].islower())
        inner = (word for before, word in pairwise(words) if before[-1].isalpha())
        counts.subtract(word.strip(".,;:()").lower() for word in inner if word[0].isupper())
    return counts


def _asked(article: Article, sentence: str, grammar: _Grammar, common: Counter[str]) -> dict[str, str] | None:
    """The parts of a question about an article, or None where its first sentence does not define its title."""
    if re.search(r"[()\[\]\"«»:]", article.title):
        return None
    person = article.topic == grammar.people
    found = _person(article, sentence, grammar) if person else _thing(article, sentence, grammar, common)
    if found is None:
        return None
    subject, verb = found
    word = grammar.who[grammar.verbs[verb]] if person else grammar.what
    asked = f"{word} {verb}"
    clause = f"{word} {subject} {verb}" if grammar.verb_last else f"{asked} {subject}"
    return {"asked": asked, "Asked": asked.capitalize(), "clause": clause, "subject": subject}


def _person(article: Article, sentence: str, grammar: _Grammar) -> tuple[str, str] | None:
    """The name of a person and the verb. The sentence may have a longer name than the title."""
    verb = re.search(rf"(?<!que )(?<!who )\b({'|'.join(grammar.verbs)})\b", sentence)
    with_article = sentence.startswith(f"The {article.title}")
    return (f"the {article.title}" if with_article else article.title, verb[0]) if verb else None


def _thing(article: Article, sentence: str, grammar: _Grammar, common: Counter[str]) -> tuple[str, str] | None:
    """The subject of a definition, as it stands within a sentence, and the verb."""
    found = re.match(
        rf"(?P<opening>[^,]{{1,{_LONGEST_OPENING}}}, )?(?:(?P<article>{grammar.articles}) )?"
        rf"(?P<name>{re.escape(article.title)})(?=\W)(?P<aside>(?:{grammar.connections}).{{0,{_LONGEST_ASIDE}}}?)?"
        rf" (?P<verb>{'|'.join(grammar.verbs)}) (?!(?:{grammar.names})\b)(?:{grammar.determiners})\b",
        sentence,
        re.IGNORECASE,
    )
    if found is None or found["verb"] not in grammar.verbs:
        return None
    name, verb, before = found["name"], found["verb"], (found["article"] or "").lower()
    if before in grammar.plural_articles and not grammar.verbs[verb]:
        return None
    if before:
        return f"{before} {name}", verb
    # A title at the beginning of a sentence loses its capital if it is a common word.
    lowered = name[0].lower() + name[1:]
    inner = found["opening"] or article.topic == grammar.works or not lowered.islower()
    return (name if inner or common[lowered.split()[0]] <= 0 else lowered), verb


def _beginning(parts: Sequence[str]) -> str:
    """As many sentences as fit, and at least the first."""
    text = parts[0]
    for part in parts[1:]:
        if len(text) + 1 + len(part) > _LONGEST_STATEMENT:
            break
        text = f"{text} {part}"
    return text
