"""Wikitext to plain text, construct by construct."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.sources.wikitext import Site, is_disambiguation, is_redirect, plain_text

NAMESPACES = ((-2, "Médium"), (0, ""), (6, "Fichier"), (10, "Modèle"), (14, "Catégorie"))
SITE = Site.of(NAMESPACES)


def check(cases: dict[str, str]) -> None:
    found = {wikitext: plain_text(wikitext, SITE) for wikitext in cases}
    assert found == cases


def test_links_show_their_label() -> None:
    check(
        {
            "The [[dog]]s of [[Paris|the city]].": "The dogs of the city.",
            "See [[:Category:Dogs]] and [[Help:Foo|help]].": "See Category:Dogs and help.",
            "A [[:fr:Chien|chien]] and [[wikt:dog|word]].": "A chien and word.",
            "Main [[New_York#History|history]], [[New_York]].": "Main history, New York.",
            "On [http://a.org the ''web'' site] now.": "On the web site now.",
            "A note.[http://a.org] [//b.org Text] and http://c.org/x here.": "A note. Text and http://c.org/x here.",
            "An [[a|label with {{lang|fr|mot}}]] here.": "An label with mot here.",
        }
    )


def test_images_categories_and_interlanguage_links_are_dropped() -> None:
    check(
        {
            "A[[File:x.jpg|thumb|A caption with [[link]] and [http://a.org b]]]B": "AB",
            "A[[fichier:x.jpg|vignette]][[Image:y.png]][[Médium:z.ogg]]B": "AB",
            "Text.\n\n[[Category:Dogs]]\n[[Catégorie:Chiens|tri]]\n[[fr:Chien]]\n[[zh-min-nan:Káu]]": "Text.",
        }
    )
    assert plain_text("[[Archivo:x.jpg|hola]]B", Site.of([(6, "Archivo")])) == "B"
    assert plain_text("[[Archivo:x.jpg|hola]]B", SITE) == "holaB"


def test_quotes_and_apostrophes() -> None:
    check(
        {
            "'''Bold''', ''italic'', '''''both''''' and don't.": "Bold, italic, both and don't.",
            "Dans l'''Iliade'' et l''''homme'''.": "Dans l'Iliade et l'homme.",
            "Il lit l'''[[Odyssée]]''.": "Il lit l'Odyssée.",
        }
    )


def test_inline_templates_keep_their_text() -> None:
    check(
        {
            "The {{lang|fr|machine ''x''}} is {{Nowrap|13&nbsp;kg}}.": "The machine x is 13 kg.",
            "({{lang-ru|Москва}}; {{transliteration|ru|ISO|Moskva}})": "(Москва; Moskva)",
            "{{Nihongo|Tokyo Tower|東京タワー|Tōkyō tawā}}": "Tokyo Tower (東京タワー, Tōkyō tawā)",
            "{{convert|5|km|mi|0}}, {{Convert|5|to|10|km2}}, {{cvt|6|ft|2|in|m}}": "5 km, 5 to 10 km², 6 ft 2 in",
            "{{birth date|1815|12|10|df=y}}, {{start date|1990|5}}": "10 December 1815, May 1990",
            "{{date|10|décembre|1815}}, {{fecha|10|12|1815}}": "10 décembre 1815, 10 de diciembre de 1815",
            "{{ill|Ada|fr|Ada L|lt=Lady Ada}}, {{Lien|trad=Dog|lang=en|fr=Chien}}": "Lady Ada, Chien",
            "{{abbr|km|kilometre}} {{abréviation discrète|m|mètre}}": "km m",
            "{{quote|To be.|Hamlet}} {{Blockquote|text=Or not.}}": "To be. Or not.",
            "au {{s-|XIX|e}}, {{-s|II|e}}, {{siglo|V|a}}": "au XIXe siècle, IIe siècle av. J.-C., siglo V a. C.",
            "{{XIXe siècle}}, {{IIIe siècle av. J.-C.}}": "XIXe siècle, IIIe siècle av. J.-C.",
            "the sound {{IPA|/p/}} in paper ({{IPA|en|peɪpə}})": "the sound /p/ in paper ()",
            "{{unité|5|km|2}} et {{formatnum:1000}} {{nombre|7}}": "5 km² et 1000 7",
            "{{citation|mot}}, {{cita|palabra}}": "« mot », «palabra»",
            "{{circa|1500}} {{as of|2010|12|lc=y}}": "c. 1500 as of December 2010",
            "{{val|1.5|e=6|u=m}} {{frac|3|1|2}} {{US$|5}}": "1.5×10⁶ m 3 1/2 US$5",
            "{{ LANG\n | es\n | {{small|{{nobr|uno}} dos}} }}": "uno dos",
            "{{Template:nowrap|a}} {{modèle:nobr|b}}": "a b",
            "1939{{ndash}}1945 {{'}}{{-}}": "1939–1945 '",
        }
    )


def test_other_templates_are_dropped_and_their_neighbours_stay() -> None:
    check(
        {
            "{{Infobox person\n| name = {{nowrap|Ada}}\n| x = [[File:a.jpg]] {{lang|fr|b}}\n}}\nText.": "Text.",
            "A fact{{citation needed|date=May 2010}} stays.{{sfn|Toole|1987|p={{nowrap|5}}}}": "A fact stays.",
            "{{Main|Dog}}\nText.\n{{Navbox|list={{hlist|a|b}}}}": "Text.",
            "A chair ({{IPAc-en|tʃ}}, {{respell|CHAIR}}) is": "A chair (, ) is",
            "{{DEFAULTSORT:Lovelace}}__NOTOC__Text {{#if:a|b}}{{{1|default}}}, {{nowrap|{{{a|}}}b}}.": "Text , b.",
            "Text }} more [[open {{#if:a}} ]{": "Text  more open  ]{",
            "{{broken\n|a=b\n|c=d\n\nText.": "broken\n\nText.",
        }
    )


def test_a_lost_formula_leaves_the_hole_that_the_clean_stage_counts() -> None:
    assert plain_text("where <math>x < y</math> is", SITE) == "where  is"


def test_tables_are_dropped_and_their_neighbours_stay() -> None:
    table = "{| class=x\n|+ Title\n! a !! b\n|-\n| [[c]]\n{|\n| inner\n|}\n| <b>d\nmore\n|}"
    check(
        {
            f"Before.\n{table}\nAfter.": "Before.\n\nAfter.",
            f"Before.\n:{table} After.": "Before.\nAfter.",
            "Before.\n{| class=x\n| cell\n|-\nAfter.\n\n== H ==\nMore.": "Before.\nAfter.\n\nH\n\nMore.",
            "A<table><tr><td>cell</td></tr></table>B": "AB",
        }
    )


def test_comments_references_and_extension_tags() -> None:
    check(
        {
            'A.<ref name="a">{{cite|x=[[y]]}} B</ref> C.<ref name=a/><REF group="n" />': "A. C.",
            "A<!-- {{ == x == [[ -->B": "AB",
            "One\n<!-- a line -->\ntwo": "One\ntwo",
            "A<gallery>\nx.jpg|y\n</gallery>B<score>c</score><syntaxhighlight lang=py>\nif {{x}}\n</syntaxhighlight>": (
                "AB"
            ),
            'The <syntaxhighlight lang="c" inline>int *a[]</syntaxhighlight> type': "The int *a[] type",
            "Write <nowiki>''x'' *[1] & <b> {a|b}</nowiki> so.": "Write ''x'' *[1] & <b> {a|b} so.",
            "A <ref>never closed\n\nB": "A never closed\n\nB",
            "{<nowiki>[[</nowiki>{ <<nowiki>}}</nowiki>ref>": "{ { < ref>",
            "A<references>\n<ref>x</ref>\n</references>B": "AB",
        }
    )


def test_html() -> None:
    check(
        {
            'A <span class="x">b</span> <small>c</small><br/>d': "A b c\nd",
            "10<sup>6</sup> km<sup>2</sup>, H<sub>2</sub>O, 1<sup>er</sup>": "10⁶ km², H2O, 1er",
            "<blockquote>Quoted.</blockquote>After.": "Quoted.\n\nAfter.",
            "a &amp; b &lt; c&nbsp;d &eacute; &#233; &#x20AC; &unknown; AT&T": "a & b < c d é é € &unknown; AT&T",
            "If 3 < 4 and x<y then <stdio.h>": "If 3 < 4 and x<y then <stdio.h>",
            "A <del>wrong</del>right": "A right",
            "bad &#xD800; &#x110000;": "bad \ufffd &#x110000;",
        }
    )


def test_lists_are_lines_and_emptied_items_go() -> None:
    check(
        {
            "Two:\n* one\n** [[two]]\n# three\n: four\n; five: six\n\nEnd.": (
                "Two:\none\ntwo\nthree\nfour\nfive: six\n\nEnd."
            ),
            "* one\n* {{cite|x}}.\n* two": "one\ntwo",
            "One.\n\n\n\n\nTwo.": "One.\n\nTwo.",
        }
    )


def test_headings_are_lines_and_empty_sections_go() -> None:
    check(
        {
            "Lead.\n== ''History'' <!-- x --> ==\n=== [[Early]] ===\nText.\n=== Empty ===\n{{x}}\n== Also ==\n": (
                "Lead.\n\nHistory\n\nEarly\n\nText."
            ),
            "{{Infobox}}\n== One ==\nText.\n==Two==\nMore.": "One\n\nText.\n\nTwo\n\nMore.",
        }
    )


@pytest.mark.parametrize(
    "title",
    "References|External links|See also|Notes and references|Sources, notes & references|Referencias|Véase también|"
    "Notas y referencias|Enlaces externos|Références|Voir aussi|Notes et références".split("|"),
)
def test_end_sections_are_dropped_with_what_is_below_them(title: str) -> None:
    wikitext = f"Lead.\n== {title} ==\n* A\n=== Below ===\nB\n== Legacy ==\nC"
    assert plain_text(wikitext, SITE) == "Lead.\n\nLegacy\n\nC"
    assert plain_text(f"Lead.\n== {title} of war ==\nA", SITE).endswith("A")


@pytest.mark.parametrize(
    ("wikitext", "redirect", "disambiguation"),
    [
        ("#REDIRECT [[Dog]]", True, False),
        ("\n#redirección: [[Perro]]", True, False),
        ("#REDIRECTION[[Chien]]", True, False),
        ("# [[One]]\n# [[Two]]", False, False),
        ("'''A''' may be:\n* [[B]]\n{{disambiguation}}", False, True),
        ("{{Human name disambiguation}}", False, True),
        ("{{Homonymie}} {{Autre}}", False, True),
        ("{{Homonymie de personnes}}", False, True),
        ("{{ desambiguación |x}}", False, True),
        ("{{Begriffsklärung}}", False, True),
        ("__DISAMBIG__", False, True),
        ("{{{dab}}", False, True),
        ("{{\n hndis\n|name=x}}", False, True),
        ("{{Place name, disambiguation page }}", False, True),
        ("{{a {{dab}}", False, True),
        ("{{dab {{x}}", False, False),
        ("#REDIRECT : [[Dog]]", True, False),
        ("#REDIRECT :: [[Dog]]", False, False),
        ("A [[b]]{{disambiguation needed|date=x}} and {{Voir homonymes}} {{otros usos}}", False, False),
    ],
)
def test_pages_that_are_no_articles_are_known(wikitext: str, redirect: bool, disambiguation: bool) -> None:
    assert (is_redirect(wikitext), is_disambiguation(wikitext)) == (redirect, disambiguation)


@pytest.mark.parametrize(
    "wikitext",
    [
        *(
            unit * (30_000 // len(unit))
            for unit in ("{{lang|[[b|<b>", '<div class="', "{|\n|-\n", "[http://a ", "'''a ")
        ),
        *(unit * 20 for unit in ("{{lang|[x|" * 10 + "}}" * 10, "{{s|" * 39 + "}}" * 39, "{{s|" * 200 + "}}" * 200)),
        *(unit * (300_000 // len(unit)) for unit in ("<ref name=", "== ==", "{{lang|", "[[a|")),
        "<ref>" * 120_000,
        f"{{{{lang{'|a' * 5_000}}}}}",
    ],
    ids=range(14),
)
def test_broken_markup_takes_time_in_proportion(wikitext: str) -> None:
    started = time.process_time()
    text = plain_text(f"Before.\n\n{wikitext}\n\n== Next ==\nAfter.", SITE)
    assert time.process_time() - started < 8  # seconds; a tenth of it as a rule, and minutes where it is quadratic
    assert text.startswith("Before.") and text.endswith("After.")


@pytest.mark.parametrize("start", ["{{", "{{homonymie", "{{a disambiguation", "#a", "#a :"])
@pytest.mark.parametrize("unit", [" ", "a ", "{{ "])
def test_pages_that_are_no_articles_are_known_in_proportional_time(start: str, unit: str) -> None:
    def seconds(size: int) -> float:
        wikitext = start + unit * (size // len(unit))
        started = time.process_time()
        for _ in range(3):
            assert not is_redirect(wikitext) and not is_disambiguation(wikitext)
        return time.process_time() - started

    seconds(1000)
    assert seconds(16_000) < 8 * seconds(4000) + 0.01  # four times as a rule, and sixteen times where it is quadratic


MARKUP = (
    "{{ }} [[ ]] { } [ ] | = == ''' '' * # : ; <ref> </ref> <ref <!-- --> <nowiki> </nowiki> {| |} |- & &amp; http://a "
)
PIECES = st.sampled_from(
    [*MARKUP.split(), " ", "\n", "\n== ", "lang", "lang|fr|", "File:", "nowrap|", "a", "é", "\x02"]
)


@given(st.lists(PIECES, max_size=25).map("".join) | st.text(max_size=60))
def test_no_wikitext_raises_or_leaves_markup(wikitext: str) -> None:
    text = plain_text(wikitext, SITE)
    assert not any(mark in text.lower() for mark in ("{{", "}}", "[[", "]]", "<ref", "</ref", "\x02"))


WORDS = st.text("abc é.,", min_size=1, max_size=8)
BALANCED = st.recursive(
    WORDS,
    lambda inner: st.one_of(
        st.tuples(
            st.sampled_from(["{{%s}}", "{{nowrap|%s}}", "[[a|%s]]", "''%s''", "<b>%s</b>", "\n* %s\n"]), inner
        ).map(lambda pair: pair[0] % pair[1]),
        st.tuples(inner, inner).map("".join),
    ),
    max_leaves=12,
)


@given(BALANCED)
def test_balanced_wikitext_leaves_no_markup_and_keeps_what_stands_around(wikitext: str) -> None:
    text = plain_text(f"Before.\n\n{wikitext}\n\nAfter.", SITE)
    assert not any(mark in text for mark in ("{{", "[[", "''", "<b", "*", "nowrap"))
    assert text.startswith("Before.") and text.endswith("After.")
