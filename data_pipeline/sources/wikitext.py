"""Wikitext to plain text: what a reader sees of an article's prose, in paragraphs separated by blank lines."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from data_pipeline.sources.wiki_markup import LIST_ITEM, prepared, without_extensions
from data_pipeline.sources.wiki_templates import Parameters, rule_for

# MediaWiki knows these in every language beside the names in that language.
_HIDDEN_NAMESPACES = frozenset("file image media category".split())
# A link such as [[fr:Paris]] stands for the same article elsewhere, and is shown in the margin.
_INTERLANGUAGE = re.compile(r"(?:[a-z]{2,3}(?:-[a-z]+)*|simple)(?=:\S)")
_OTHER_WIKIS = frozenset("doi hdl mw rfc voy wmf".split())

_HEADING = re.compile(r"^(={2,6})([^\n]+?)\1[ \t]*$", re.MULTILINE)
_HEADING_WORDS = re.compile(r" ?(?:[,;/&]|\b(?:and|y|e|et|und|or|o|ou)\b) ?")
# Sections at the end of an article that are lists of links and books, in English, Spanish, French and a few more.
_END_SECTIONS = frozenset(
    """
    references|reference|notes|note|footnotes|endnotes|citations|sources|works cited|bibliography|further reading
    external links|external link|see also|related pages|other websites|related articles|gallery|image gallery
    referencias|notas|notas al pie|véase también|enlaces externos|bibliografía|fuentes|lecturas adicionales|galería
    galería de imágenes|lectura adicional|bibliografía adicional|otras lecturas|enlaces relacionados
    références|voir aussi|liens externes|lien externe|bibliographie|articles connexes|article connexe|annexes|annexe
    liens internes|galerie|notes de bas de page|ouvrages|sources primaires|sources secondaires|iconographie
    einzelnachweise|weblinks|literatur|siehe auch|quellen|fußnoten|anmerkungen
    note bibliografiche|riferimenti|collegamenti esterni|voci correlate|altri progetti
    referências|ver também|ligações externas|bibliografia|leitura adicional
    """.replace("\n", "|")
    .replace("    ", "")
    .strip("|")
    .split("|")
)

_REDIRECT = re.compile(r"\s*#[^\W\d_]+\s*(?::\s*)?\[\[")
_TEMPLATE = re.compile(r"\{\{([^{|}]*)[|}]")
_DISAMBIGUATION = re.compile(
    r"(?:(?:[\w ,-]+ )?disambiguation(?: page)?|[\w-]*disambig|disamb|dab|hndis|geodis|schooldis"
    r"|homonymie(?: [\w' -]+)?|paronymie|patronyme|desambiguaci[oó]n|desambig|des|desamb|desambiguação|disambigua"
    r"|begriffsklärung|doorverwijspagina|dp|förgrening|flertydig|ujednoznacznienie|неоднозначность|багатозначність"
    r"|曖昧さ回避|aimai|消歧义|消歧義|동음이의)",
    re.IGNORECASE,
)

_LOST_BRACKETS = re.compile(r"\{\{+|\}\}+|\[\[+|\]\]+|</?ref\b[^<>\n]*>?", re.IGNORECASE)
_REMADE_BRACKETS = re.compile(r"([{}\[\]])(?=\1)|<(?=/?ref)", re.IGNORECASE)
_BLANK_LINES = re.compile(r"\n{3,}")
_WORD = re.compile(r"\w")


@dataclass(frozen=True)
class Site:
    """What the text of a wiki means depends on the names of its namespaces, in lower case."""

    hidden: frozenset[str] = _HIDDEN_NAMESPACES  # links to these are images, sounds and categories
    templates: frozenset[str] = frozenset({"template"})

    @classmethod
    def of(cls, namespaces: Iterable[tuple[int, str]]) -> Site:
        """From the numbers and names in the header of a dump."""
        names: dict[int, set[str]] = {}
        for number, name in namespaces:
            names.setdefault(number, set()).add(name.casefold())
        hidden = names.get(-2, set()) | names.get(6, set()) | names.get(14, set())
        return cls(_HIDDEN_NAMESPACES | hidden, frozenset({"template"} | names.get(10, set())))


def is_redirect(wikitext: str) -> bool:
    return bool(_REDIRECT.match(wikitext))


def is_disambiguation(wikitext: str) -> bool:
    """Whether a page only lists what its title may mean: it says so by a template or a magic word."""
    names = (match[1].strip() for match in _TEMPLATE.finditer(wikitext))
    return "__disambig__" in wikitext.lower() or any(map(_DISAMBIGUATION.fullmatch, names))


def plain_text(wikitext: str, site: Site) -> str:
    """The prose of a page; empty where there is none.

    Templates that format inline text leave it (`wiki_templates.py`), all others are dropped, and so are tables,
    references, formulas, galleries, images, categories, sections of links and books, and sections without text.
    Headings and list items are lines. What a dropped template leaves in its sentence, such as "( , )", stays: the clean
    stage closes and counts it. No input raises, and none takes time much out of proportion to its length.
    """
    renderer = _Renderer(site)
    sections: list[tuple[int, str, str]] = []  # level, heading, text
    left_out = 99  # level of the section that is being left out
    for level, heading, body in _split(without_extensions(wikitext.replace(LIST_ITEM, ""))):
        title = " ".join(renderer.text(heading).split())
        if level > left_out:
            continue
        left_out = level if _is_end_section(title) else 99
        if left_out == 99:
            sections.append((level, title, renderer.text(body)))
    blocks: list[str] = []
    below = 0  # level of the section that follows
    for level, title, body in reversed(sections):
        if body or below > level:
            blocks += [body, title]
            below = level
    return _scrubbed("\n\n".join(block for block in reversed(blocks) if block))


def _split(text: str) -> Iterable[tuple[int, str, str]]:
    """The sections with their level, 0 for the part before the first heading. Reading each by itself keeps what is
    broken in one from the others, and spares the work on those that are left out."""
    level, heading, start = 0, "", 0
    for match in _HEADING.finditer(text):
        yield level, heading, text[start : match.start()]
        level, heading, start = len(match[1]), match[2], match.end()
    yield level, heading, text[start:]


def _is_end_section(title: str) -> bool:
    key = title.casefold().strip(" :.")
    return key in _END_SECTIONS or all(part in _END_SECTIONS for part in _HEADING_WORDS.split(key))


def _scrubbed(text: str) -> str:
    """Without brackets that came together only here, or that <nowiki> meant to show; never any markup is left."""
    text = _LOST_BRACKETS.sub("", text)
    text = _REMADE_BRACKETS.sub(lambda match: match[0] + " ", text)
    return _BLANK_LINES.sub("\n\n", text).strip()


class _Renderer:
    """Renders the tree that mwparserfromhell makes of a section."""

    def __init__(self, site: Site) -> None:
        import mwparserfromhell
        from mwparserfromhell import nodes

        self.site = site
        self.parse: Callable[..., Any] = mwparserfromhell.parse
        self.node_types: dict[type, Callable[[Any], str]] = {
            nodes.Text: lambda node: str(node.value),
            nodes.Template: self._template,
            nodes.Wikilink: self._link,
            nodes.ExternalLink: self._external_link,
            nodes.HTMLEntity: lambda node: html.unescape(str(node)),
            nodes.Tag: lambda node: self._nodes(node.contents),
            nodes.Heading: lambda node: self._nodes(node.title),
        }

    def text(self, wikitext: str) -> str:
        """The text of a section, without blank lines around it."""
        text = prepared(wikitext, lambda name: self._rule(name) is not None)
        if any(mark in text for mark in ("{{", "[", "&", "://")):
            text = self._nodes(self.parse(text, skip_style_tags=True))
        return _lines(text)

    def _nodes(self, code: Any) -> str:
        if code is None:
            return ""
        return "".join(self.node_types.get(type(node), lambda other: "")(node) for node in code.nodes)

    def _rule(self, name: str) -> Callable[[Parameters], str] | None:
        """What to do with a template, named as it is in the text; its namespace may stand before."""
        before, colon, rest = name.partition(":")
        if colon:
            name = rest if before.strip().casefold() in self.site.templates else before
        return rule_for(name)

    def _template(self, node: Any) -> str:
        name = str(node.name)
        rule = self._rule(name)
        if rule is None:
            return ""
        parameters = {}
        before, colon, rest = self._nodes(node.name).partition(":")
        if colon and before.strip().casefold() not in self.site.templates:
            parameters["1"] = rest.strip()  # a magic word such as {{formatnum:1000}}
        for parameter in node.params:
            parameters[str(parameter.name).strip()] = self._nodes(parameter.value).strip()
        return rule(parameters)

    def _link(self, node: Any) -> str:
        title = self._nodes(node.title).strip()
        if not title.startswith(":"):
            prefix = title.partition(":")[0].strip()
            if prefix != title and prefix.replace("_", " ").casefold() in self.site.hidden:
                return ""
            if _INTERLANGUAGE.match(title) and prefix not in _OTHER_WIKIS:
                return ""
        return self._nodes(node.text) or title.lstrip(":").replace("_", " ")

    def _external_link(self, node: Any) -> str:
        return self._nodes(node.title) if node.brackets else str(node.url)


def _lines(text: str) -> str:
    """Lines without list marks and spaces around them; what is left of emptied items and of broken tables goes."""
    kept = []
    for line in text.replace("\xa0", " ").split("\n"):
        content = line.replace(LIST_ITEM, "").strip()
        if not content and LIST_ITEM not in line:
            kept.append("")
        elif _WORD.search(content) and not content.startswith(("|", "{|")):
            kept.append(content)
    return _BLANK_LINES.sub("\n\n", "\n".join(kept)).strip()
