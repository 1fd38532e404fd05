"""Which files of a documentation package are texts, and the text in them, whatever format they are written in."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from data_pipeline.sources import layout
from data_pipeline.sources.opening import plain_suffix
from data_pipeline.sources.roff import manual_text

_HTML = frozenset((".html", ".htm", ".xhtml"))
_PLAIN = frozenset((".txt", ".text", ".md", ".rst", ".dict"))
_CODE = frozenset(".c .cc .cpp .cs .cxx .go .h .hpp .hs .java .jl .lua .ml .pl .py .r .rb .rs .scala .sh".split())
_MANUAL_PAGE = re.compile(r"(?:^|/)man/(?:[^/]+/)?man\d\w*/[^/]+$")
# Changes, licences and lists of names; the indexes that Sphinx, Doxygen, Javadoc and rustdoc make, and the sources of
# pages and programs, which would be read twice.
_NO_TEXT = re.compile(
    r"(?:^|/)(?:_sources|_modules|_static|_downloads|class-use|index-files|search)/"
    r"|/src/.*\.html|(?:_source|-members|_8h|_8c|_8cpp|-big-page(?:\.\w+)?)\.html"
    r"|(?:^|/)(?:all\.html|allclasses|allpackages|annotated|authors|change|classes\.|cmakelists|constant-values|contributors"
    r"|copying|copyright|credits|deprecated-list|doc-index|files\.|functions_|general-index|genindex|globals|hierarchy\."
    r"|index-all|inherits|licen[cs]e|namespacemembers|news|overview-tree|package-(?:tree|use)|py-modindex"
    r"|requirements|serialized-form|thanks|todo)[^/]*$"
)
_LANGUAGES = frozenset(
    "af ar ast bg bn bs ca cs da de el en eo es et eu fa fi fr ga gl gu he hi hr hu hy id it ja ka kk km kn ko lt lv "
    "mk ml mr ms nb ne nl nn pa pl pt ro ru si sk sl sq sr sv ta te th tr ug uk vi zh".split()
)
_LOCALE = re.compile(r"([a-z]{2,3})(?:[-_](?:[a-z]{2}|\d{3}|hans|hant|cyrl|latn))*(?:[.@][\w-]+)?")  # pt_br, de.utf-8
_OF_PACKAGE = re.compile(r"(?:^|/)share/doc/[^/]+/")  # its name means no language, as that of "sl" or "id-utils"


def is_text(name: str, languages: tuple[str, ...] = ()) -> bool:
    """Whether the file of this name is worth reading.

    Args:
        name: path in the package, with slashes.
        languages: codes such as "en"; a path that names another language is refused, and an empty tuple takes all.
    """
    lowered = name.lower()
    if _NO_TEXT.search(lowered) or (languages and not _languages_of(lowered) <= set(languages)):
        return False
    return bool(_MANUAL_PAGE.search(lowered)) or _suffix(lowered) in _HTML | _PLAIN | _CODE | {".page"}


def is_code(name: str) -> bool:
    return _suffix(name) in _CODE and not _MANUAL_PAGE.search(name.lower())


def is_page(name: str) -> bool:
    """Whether the file is a page in HTML."""
    return _suffix(name) in _HTML


def is_plain(name: str) -> bool:
    """Whether the file is text as it stands, so that a long one can be read in pieces."""
    return _suffix(name) in _PLAIN and not _MANUAL_PAGE.search(name.lower())


def text_of(name: str, content: bytes) -> str:
    """The text of a file for which `is_text` holds; empty where it is only markup.

    Raises:
        ValueError: it is not in the format of its name; for plain formats the subclass UnicodeDecodeError.
    """
    suffix = _suffix(name)
    if _MANUAL_PAGE.search(name.lower()):
        return manual_text(content.decode())
    if suffix in _HTML or suffix == ".page":
        return layout.manual_page(content, xml=suffix == ".page")
    return content.decode("utf-8-sig")


def _suffix(name: str) -> str:
    return plain_suffix(name.removesuffix(".dz"))  # dictzip is gzip


def _languages_of(name: str) -> set[str]:
    """The language codes among the directories and suffixes: "es" in es/index.html, index.es.html and index.html.es."""
    path, suffix = PurePosixPath(_OF_PACKAGE.sub("/", name)), _suffix(name)
    words = path.name.split(".")[1:]
    if suffix in _CODE and not _HTML.intersection(f".{word}" for word in words):
        words.remove(suffix[1:])  # Perl, not Polish
    locales = map(_LOCALE.fullmatch, [*path.parts[:-1], *words])
    return {locale[1] for locale in locales if locale} & _LANGUAGES
