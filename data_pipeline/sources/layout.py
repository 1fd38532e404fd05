"""The text of a page of documentation as it is laid out, in HTML or in Mallard.

Manuals are regular, so what is text need not be guessed as on the web (`html.py`): all of the main part is. There
trafilatura loses headings, terms and inline code at the beginning of a paragraph, and takes ten times as long.
"""

from __future__ import annotations

import re
from typing import Any

# Elements that go on in the line they stand in, of HTML and of Mallard, in which GNOME's help is written.
_INLINE = frozenset(
    "a abbr acronym b bdi bdo big cite code data del dfn em font i img ins kbd label mark q ruby s samp small span "
    "strike strong sub sup time tt u var wbr app cmd file gui guiseq input key keyseq link output sys".split()
)
_PREFORMATTED = frozenset(("pre", "listing", "screen"))
_CELLS = frozenset(("td", "th"))
_LINES = frozenset("li dt dd tr item".split())  # one below the other, without a blank line between them
_SKIPPED = frozenset(
    "button canvas embed footer form frame frameset head header iframe info map math meta nav noscript object script "
    "select style svg template textarea".split()
)
# Classes, ids and roles of what Sphinx, Doxygen, Javadoc, rustdoc, DocBook and their like put around the text.
_AROUND = frozenset(
    "bar bottom-nav bottomlang breadcrumb breadcrumbs copiable-anchor copiable-link copybutton docnav footer header "
    "headerlink hideme lineno linenos nav nav-bar nav-panel nav-path nav_table navbar navfooter navheader navigation "
    "navpath navrow navsetbottom navsettop out-of-band page-header path permalink quickview related search searchbox "
    "sidebar skip-nav sphinxsidebar srclink sub-nav t-navbar table-of-contents tabs toc tocframe tocset top-nav "
    "toplang viewcode-link".split()
)
_SPACE = re.compile(r"\s+")
_GAP = re.compile(r"\n{3,}")


def manual_page(content: bytes, xml: bool = False) -> str:
    """The text of a page of documentation: all of its main part, with headings, terms, tables and listings.

    Args:
        content: HTML, or with `xml` a page in Mallard.

    Raises:
        ValueError: nothing in it can be parsed.
    """
    from lxml import etree

    if xml:
        parser: Any = etree.XMLParser(recover=True, no_network=True, load_dtd=False)
    else:
        # Pages that name no encoding, or a wrong one, are nearly always in UTF-8.
        parser = etree.HTMLParser(encoding="utf-8" if _is_utf8(content) else None, no_network=True)
    try:
        root = etree.fromstring(content, parser)
    except (etree.LxmlError, ValueError) as error:
        raise ValueError("not a page") from error
    if root is None:
        raise ValueError("not a page")
    main = root.xpath("//main | //*[@role='main']") or root.xpath("//body")
    return _text(main[0] if main else root)


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _text(root: Any) -> str:
    from lxml import etree

    text = _Text()
    walk = etree.iterwalk(root, events=("start", "end", "comment", "pi"))
    for event, element in walk:
        if event == "start":
            tag = etree.QName(element).localname
            text.preformatted += tag in _PREFORMATTED
            text.open(tag)
            if element is not root and _is_around(tag, element):
                walk.skip_subtree()  # its end still comes
            else:
                text.add(element.text)
            continue
        if event == "end":
            tag = etree.QName(element).localname
            text.preformatted -= tag in _PREFORMATTED
            text.close(tag)
        if element is not root:
            text.add(element.tail)
    lines = (line.rstrip("\t ") for line in "".join(text.pieces).split("\n"))
    return _GAP.sub("\n\n", "\n".join(lines)).strip()


def _is_around(tag: str, element: Any) -> bool:
    names = f"{element.get('class', '')} {element.get('id', '')} {element.get('role', '')}"
    return tag in _SKIPPED or not _AROUND.isdisjoint(names.lower().split())


class _Text:
    """Text as it is laid out: runs of space are one, and elements begin lines or paragraphs."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.preformatted = 0  # open elements in which space counts

    def add(self, text: str | None) -> None:
        if text and not self.preformatted:
            text = _SPACE.sub(" ", text)
            if not self.pieces or self.pieces[-1][-1] in "\n\t ":
                text = text.lstrip()
        if text:
            self.pieces.append(text)

    def open(self, tag: str) -> None:
        if tag in _CELLS:
            if self.pieces and self.pieces[-1][-1] != "\n":
                self.pieces.append("\t")
        elif tag not in _INLINE:
            self.pieces.append("\n" if tag == "br" or tag in _LINES else "\n\n")

    def close(self, tag: str) -> None:
        if tag not in _INLINE and tag not in _CELLS and tag != "br":
            self.pieces.append("\n" if tag in _LINES else "\n\n")
