"""The text of web pages: what they are encoded in, what is article and what is menu, and pages too odd to be read.

Nothing here looks at a clock. A page is bounded by its bytes, its elements and their depth, so that no page takes
minutes, and what is read does not depend on how busy the machine is.
"""

from __future__ import annotations

import codecs
import logging
import re
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from data_pipeline.sources.opening import require

# trafilatura's work grows with the elements and with the ancestors of each: at either bound it takes some seconds. A
# large page of an encyclopedia has 10,000 elements and depths that add up to 200,000.
_MOST_ELEMENTS = 100_000
_MOST_SUM_OF_DEPTHS = 2_000_000
_DEPTH_OF_PARSER = 255  # libxml2 leaves out, in silence, what lies deeper
_MOST_SCRIPT = 100_000  # characters; trafilatura searches scripts for articles, in quadratic time where they are odd
_SAMPLE = 32_768  # bytes from which an encoding is guessed
_MOST_DAMAGE = 0.1  # of the characters beyond ASCII
_HTML = frozenset(("text/html", "application/xhtml+xml"))
_PLAIN = frozenset(("text/plain", "text/markdown"))
_CHARSET = re.compile(r"""(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE)
_META = re.compile(rb"<(?:meta|\?xml)\s[^>]{1,1000}>", re.IGNORECASE)
_CLOSED = re.compile(r"(<html\b[^<>]{0,1000})/>", re.IGNORECASE)
_CONTROLS = dict.fromkeys([*range(9), 11, 12, *range(14, 32), 0x7F, 0xFFFE, 0xFFFF])
_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
# Not encodings of pages, though Python knows them; some take quadratic time.
_REFUSED = frozenset(("idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape", "utf-7"))


class UnreadablePage(ValueError):
    """A page that cannot be read; `reason` is short, for counting."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def page_text(content: bytes, content_type: str) -> str | None:
    """The text of an answer to a request, HTML or plain; None where it has none.

    Args:
        content: without content encodings such as gzip.
        content_type: the header, such as "text/html; charset=utf-8". Without one, what begins with "<" is HTML.

    Raises:
        UnreadablePage: "not_html" for other types, and the reasons of `html_to_text`.
        UserError: trafilatura is not installed.
    """
    media_type = _media_type(content_type)
    if media_type in _PLAIN:
        return decode_page(content, _charset(content_type)).strip() or None
    if media_type in _HTML or (not media_type and content.lstrip()[:1] == b"<"):
        return html_to_text(content, _charset(content_type))
    raise UnreadablePage("not_html")


def is_page(content_type: str) -> bool:
    """Whether `page_text` may find text in an answer of this type; the header may be missing."""
    return not content_type.strip() or _media_type(content_type) in _HTML | _PLAIN


def html_to_text(page: bytes | str, charset: str = "") -> str | None:
    """The title and text of a page, without menus, footers and comments, as trafilatura sees them.

    The title stands first, unless the text begins with it already.

    Args:
        page: HTML, as bytes in any encoding or as text.
        charset: what the HTTP header says about bytes, if anything.

    Returns:
        None where the page holds no text.

    Raises:
        UnreadablePage: with the reason "invalid_encoding", "too_deep", "too_complex" or "invalid_html".
        UserError: trafilatura is not installed.
    """
    trafilatura = _trafilatura()
    decoded = page if isinstance(page, str) else decode_page(page, charset, _meta_charset(page))
    tree = _parse(decoded)
    if tree is None:
        return None
    _check_size(tree)
    title = " ".join((tree.findtext("head/title") or "").split())
    for script in list(tree.iter("script")):
        if len(script.text or "") > _MOST_SCRIPT:
            script.text = ""
    try:
        # Its own removal of repeated lines depends on the pages before.
        found: str | None = trafilatura.extract(tree, include_comments=False, deduplicate=False)
    except Exception as error:  # of lxml and of the recursion limit, for pages that no browser reads either
        raise UnreadablePage("invalid_html") from error
    if not found or not found.strip():
        return None
    first_line = found.partition("\n")[0].strip()
    return found if not title or first_line in title or title in first_line else f"{title}\n\n{found}"


def decode_page(content: bytes, *declared: str) -> str:
    """Text in the encoding that the bytes show, else in the first declared one that fits, else in a likely one.

    Bytes that are UTF-8 but for a few mistakes are UTF-8, whatever is declared: text in other encodings never looks so
    by chance, but many declarations are wrong. Broken characters become U+FFFD.

    Raises:
        UnreadablePage: "invalid_encoding" where nothing fits.
    """
    for mark, marked in _MARKS.items():
        if content.startswith(mark):
            return content[len(mark) :].decode(marked, "replace")
    shifted = b"\x1b" in content or b"\0" in content  # of ISO 2022 and UTF-16, which look like ASCII
    text = None if shifted else _nearly(content, "utf-8")
    if text is not None:
        return text
    for name in declared:
        if (encoding := _python_name(name)) is None:
            continue
        try:
            return content.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
    import charset_normalizer  # comes with trafilatura

    guess = charset_normalizer.from_bytes(content[:_SAMPLE]).best()
    text = _nearly(content, guess.encoding) if guess else None
    if text is None:
        raise UnreadablePage("invalid_encoding")
    return text


def site_of(url: str) -> str:
    """The registered domain of a URL, such as "example.co.uk", by the list that comes with the tld package.

    The host where that has none, as an address or "localhost"; "" where there is no host.
    """
    from tld import get_fld  # comes with trafilatura

    try:
        host = (urlsplit(url).hostname or "").removeprefix("www.")
        return get_fld(url, fail_silently=True, search_private=True) or host
    except ValueError:  # such as a broken IPv6 address
        return ""


@cache
def _trafilatura() -> Any:
    require("trafilatura", "reading HTML")
    import trafilatura

    # It writes to standard error about every page that has no text; here such pages are counted.
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    return trafilatura


def _parse(text: str) -> Any:
    """The tree of a page, or None. trafilatura's own parsing takes minutes for some first lines."""
    from lxml import etree, html

    # libxml2 takes <html/> for a whole page, and a byte of zero for an unknown character.
    text = _CLOSED.sub(r"\1>", text[:4096]) + text[4096:]
    content = text.translate(_CONTROLS).encode("utf-8", "replace")
    parser = html.HTMLParser(
        encoding="utf-8", collect_ids=False, default_doctype=False, remove_comments=True, remove_pis=True
    )
    try:
        return html.document_fromstring(content, parser=parser)
    except etree.ParserError:  # empty
        return None
    except (etree.LxmlError, ValueError, RecursionError) as error:
        raise UnreadablePage("invalid_html") from error


def _check_size(tree: Any) -> None:
    from lxml import etree

    depth = elements = depths = 0
    for event, _ in etree.iterwalk(tree, events=("start", "end")):
        if event == "end":
            depth -= 1
            continue
        depth, elements, depths = depth + 1, elements + 1, depths + depth
        if depth >= _DEPTH_OF_PARSER:
            raise UnreadablePage("too_deep")
        if elements > _MOST_ELEMENTS or depths > _MOST_SUM_OF_DEPTHS:
            raise UnreadablePage("too_complex")


def _nearly(content: bytes, encoding: str) -> str | None:
    """`content` decoded, unless that breaks more than a few of the characters beyond ASCII."""
    text = content.decode(encoding, "replace")
    broken = text.count("\ufffd")
    return text if not broken or broken <= _MOST_DAMAGE * (len(text) - len(text.encode("ascii", "ignore"))) else None


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _charset(declaration: str) -> str:
    found = _CHARSET.search(declaration)
    return found[1] if found else ""


def _meta_charset(content: bytes) -> str:
    """What the page says about itself in its first 4 KB. It cannot be UTF-16, as these bytes were read as ASCII."""
    for tag in _META.findall(content[:4096]):
        name = _charset(tag.decode("ascii", "replace"))
        if name and not name.lower().startswith("utf-16"):
            return name
    return ""


def _python_name(charset: str) -> str | None:
    try:
        name = codecs.lookup(charset).name.replace("_", "-")
    except (LookupError, ValueError):
        return None
    # Browsers read the names for ASCII and Latin-1 as Windows-1252 (WHATWG, Encoding Standard).
    return None if name in _REFUSED else "cp1252" if name in {"ascii", "iso8859-1"} else name
