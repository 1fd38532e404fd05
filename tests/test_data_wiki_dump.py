"""Reading dumps of wikis: whole, compressed, damaged, and through to a dataset."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from test_data_helpers import prose, small_config, words

from common.errors import UserError
from common.files import read_json
from data_pipeline import collect
from data_pipeline.config import CollectionConfig
from data_pipeline.documents import Document, read_documents, read_rows
from data_pipeline.pipeline import curate
from data_pipeline.sources import wiki_dump
from data_pipeline.sources.config import WikipediaDump

ENGLISH = {-2: "Media", 0: "", 1: "Talk", 6: "File", 10: "Template", 14: "Category"}
FRENCH = {-2: "Média", 0: "", 1: "Discussion", 6: "Fichier", 10: "Modèle", 14: "Catégorie"}


def page(title: str, text: str, number: int = 7, space: int = 0, extra: str = "", model: str = "wikitext") -> str:
    """A page as MediaWiki exports it; `extra` stands before its revision."""
    return f"""  <page>
    <title>{escape(title)}</title>
    <ns>{space}</ns>
    <id>{number}</id>
    {extra}
    <revision>
      <id>{number + 1000}</id>
      <parentid>{number}</parentid>
      <timestamp>2024-01-02T03:04:05Z</timestamp>
      <contributor>
        <username>Someone</username>
        <id>3</id>
      </contributor>
      <minor />
      <comment>typo</comment>
      <origin>{number + 1000}</origin>
      <model>{model}</model>
      <format>text/x-wiki</format>
      <text bytes="{len(text.encode())}" sha1="abc" xml:space="preserve">{escape(text)}</text>
      <sha1>abc</sha1>
    </revision>
  </page>
"""


def dump(pages: Sequence[str], language: str = "en", spaces: dict[int, str] | None = None) -> bytes:
    namespaces = "".join(
        f'<namespace key="{number}" case="first-letter">{name}</namespace>'
        for number, name in (spaces or ENGLISH).items()
    )
    home = f"https://{language}.wikipedia.org/wiki/Main_Page"
    return f"""<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="{language}">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <dbname>{language}wiki</dbname>
    <base>{home}</base>
    <generator>MediaWiki 1.43</generator>
    <case>first-letter</case>
    <namespaces>{namespaces}</namespaces>
  </siteinfo>
{"".join(pages)}</mediawiki>
""".encode()


def articles(count: int) -> list[str]:
    return [page(f"Article {number}", prose(number), number) for number in range(count)]


def collected(
    pattern: Path, config: CollectionConfig | None = None, **fields: object
) -> tuple[list[Document], list[dict[str, str]], dict[str, int]]:
    """Documents, quarantined records, and how many records were dropped for each reason."""
    source = WikipediaDump(patterns=(str(pattern),), **fields)  # type: ignore[arg-type]
    out = pattern.parent / "out"
    dropped: dict[str, int] = {}
    for number, part in enumerate(collect.plan([source], config or CollectionConfig(), out)):
        counts = collect.collect_part(f"{number:05d}", out, part)
        assert counts.documents_in == counts.documents_out + sum(counts.dropped.values())
        for reason, count in counts.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    documents = [document for path in sorted(out.glob("*.jsonl")) for document in read_documents(path)]
    quarantined = [row for path in sorted((out / "dropped").glob("*.jsonl")) for row in read_rows(path)]
    return documents, quarantined, dropped


def test_an_article_has_title_text_and_provenance(tmp_path: Path) -> None:
    text = "{{Infobox|a=b}}\n'''Ünï & co''' is a [[thing]]."
    (tmp_path / "a.xml").write_bytes(dump([page("Ünï & co", text, 12)], "simple"))
    (document,), quarantined, dropped = collected(tmp_path / "a.xml")
    assert document == Document(
        id="wikipedia/simplewiki/Ünï & co",
        source=0,
        kind="wiki",
        origin="https://simple.wikipedia.org/wiki/%C3%9Cn%C3%AF_%26_co",
        licence="CC-BY-SA-4.0",
        revision="1012",
        text="Ünï & co\n\nÜnï & co is a thing.",
    )
    assert not quarantined and not dropped


def test_pages_that_are_no_articles_are_counted_and_not_listed(tmp_path: Path) -> None:
    pages = [
        page("Dog", "A dog barks."),
        page("Hound", "#REDIRECT [[Dog]]", extra='<redirect title="Dog" />'),
        page("Hund", "#REDIRECT [[Dog]]"),
        page("Rex", "'''Rex''' may be:\n* [[Dog]]\n{{disambiguation}}"),
        page("Talk:Dog", "Talk.", space=1),
        page("Template:Dog", "{{{1}}}", space=10),
        page("Module.json", "{}", model="json"),
        page("Nothing", ""),
        page("Only a box", "{{Infobox|a=b}}\n[[Category:Boxes]]"),
    ]
    (tmp_path / "a.xml").write_bytes(dump(pages))
    documents, quarantined, dropped = collected(tmp_path / "a.xml")
    assert [document.text for document in documents] == ["Dog\n\nA dog barks."]
    assert not quarantined
    assert dropped == {"redirect": 2, "disambiguation": 1, "other_namespace": 2, "not_wikitext": 1, "no_text": 2}


def test_other_namespaces_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_bytes(dump([page("Dog", "Barks."), page("Talk:Dog", "It does.", space=1)]))
    documents, _, dropped = collected(tmp_path / "a.xml", namespaces=(1,))
    assert [document.text for document in documents] == ["Talk:Dog\n\nIt does."]
    assert dropped == {"other_namespace": 1}


def test_names_of_namespaces_come_from_the_dump(tmp_path: Path) -> None:
    text = "[[Fichier:x.jpg|vignette|Légende]]Un '''chien'''.\n[[Catégorie:Chien]]\n== Références ==\n* A"
    (tmp_path / "a.xml").write_bytes(dump([page("Chien", text)], "fr", FRENCH))
    (tmp_path / "b.xml").write_bytes(dump([page("Chien", text)], "es", {0: "", 6: "Archivo", 14: "Categoría"}))
    documents, _, _ = collected(tmp_path / "*.xml")
    assert [document.text for document in documents] == [
        "Chien\n\nUn chien.",
        "Chien\n\nvignette|LégendeUn chien.\nCatégorie:Chien",
    ]
    assert [document.origin for document in documents] == [
        "https://fr.wikipedia.org/wiki/Chien",
        "https://es.wikipedia.org/wiki/Chien",
    ]
    assert len({document.id for document in documents}) == 2


def zstandard(data: bytes) -> bytes:
    compressed: bytes = pytest.importorskip("zstandard").compress(data)
    return compressed


def multistream(data: bytes) -> bytes:
    """As Wikipedia's own dumps are: one bz2 stream after another."""
    return b"".join(bz2.compress(data[start : start + 10_000]) for start in range(0, len(data), 10_000))


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, multistream, lzma.compress, zstandard])
def test_compression_is_told_by_content(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    (tmp_path / "a.dump").write_bytes(compress(dump(articles(100))))
    documents, _, dropped = collected(tmp_path / "a.dump")
    assert len(documents) == 100 and not dropped


@pytest.mark.parametrize("compress", [bytes, multistream, gzip.compress, zstandard])
def test_a_truncated_dump_gives_every_page_before_its_end(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    whole = compress(dump(articles(300)))
    (tmp_path / "a.xml").write_bytes(whole[: len(whole) // 2])
    documents, (row,), dropped = collected(tmp_path / "a.xml")
    assert [document.text for document in documents] == [
        f"Article {number}\n\n{prose(number)}" for number in range(len(documents))
    ]
    assert len(documents) > 90
    last = len(documents) - 1
    assert row["position"].startswith(f"after page {last} (Article {last})")
    assert dropped == {"invalid_xml" if compress is bytes else "truncated_archive": 1}


def test_every_page_that_a_truncated_file_holds_is_read(tmp_path: Path) -> None:
    whole = dump(articles(50))
    for end in (whole.index(b"<id>20</id>"), whole.index(b"</page>", whole.index(b"<id>20</id>")) + 7):
        for compressed in (whole[:end], bz2.compress(whole[:end]), gzip.compress(whole[:end])[:-8]):
            (tmp_path / "a.xml").write_bytes(compressed)
            documents, quarantined, _ = collected(tmp_path / "a.xml")
            assert len(documents) == whole[:end].count(b"</page>") and len(quarantined) == 1


def test_damage_within_ends_a_dump_with_one_record(tmp_path: Path) -> None:
    good, after = articles(5), articles(7)[5:]
    for number, bad in enumerate([b"<page><title>X</page>", b"\x01", b"\xff\xfe", b"</mediawiki><more/>"]):
        head, _, tail = dump([*good, "BAD", *after]).partition(b"BAD")
        (tmp_path / f"{number}.xml").write_bytes(head + bad + tail)
        documents, quarantined, dropped = collected(tmp_path / f"{number}.xml")
        assert len(documents) == 5
        assert len(quarantined) == 1 and dropped == {"invalid_xml": 1}
        assert quarantined[0]["position"].startswith("after page 4 (Article 4), ")


def test_a_page_that_is_none_costs_only_itself(tmp_path: Path) -> None:
    bad = [
        page("X", "text").replace("<ns>0</ns>", "<ns>zero</ns>"),
        page("X", "text").replace("<title>X</title>", ""),
        page("X", "text", extra="<surprise/>"),
        page("X", "text").replace("2024-01-02T03:04:05Z", "yesterday"),
    ]
    good = articles(5)
    (tmp_path / "a.xml").write_bytes(
        dump([good[0], bad[0], good[1], bad[1], good[2], bad[2], good[3], bad[3], good[4]])
    )
    documents, quarantined, _ = collected(tmp_path / "a.xml")
    assert [document.text.partition("\n")[0] for document in documents] == [f"Article {number}" for number in range(5)]
    assert [(row["position"], row["reason"]) for row in quarantined] == [
        (f"after page {number} (Article {number})", "invalid_page") for number in range(4)
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"no XML at all", "invalid_xml"),
        (b"<html><body/></html>", "not_a_dump"),
        (b"<mediawiki>", "invalid_xml"),
    ],
)
def test_files_that_are_no_dumps(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.xml").write_bytes(content)
    documents, quarantined, _ = collected(tmp_path / "a.xml")
    assert not documents and [row["reason"] for row in quarantined] == [reason]


def test_huge_pages_are_set_aside_and_one_without_an_end_closes_the_file(tmp_path: Path) -> None:
    config = CollectionConfig(max_record_bytes=10_000)
    pages = articles(4)
    huge = page("Huge", "words " * 5000, 98)
    (tmp_path / "a.xml").write_bytes(dump([pages[0], huge, pages[1]]))
    documents, quarantined, _ = collected(tmp_path / "a.xml", config)
    assert len(documents) == 2
    assert [(row["position"], row["reason"]) for row in quarantined] == [("page 98 (Huge)", "too_large")]
    (tmp_path / "b.xml").write_bytes(dump([pages[2], page("Endless", "words " * 100_000), pages[3]]))
    documents, quarantined, _ = collected(tmp_path / "b.xml", config)
    assert documents[-1].text.startswith("Article 2")
    assert [(row["position"], row["reason"]) for row in quarantined[-1:]] == [("after page 2 (Article 2)", "too_large")]


def test_of_a_whole_history_the_latest_revision_is_taken(tmp_path: Path) -> None:
    old = "<revision><id>1</id><timestamp>2001-01-01T00:00:00Z</timestamp><text>Old text.</text></revision>"
    (tmp_path / "a.xml").write_bytes(dump([page("Dog", "New text.", 5, extra=old)]))
    documents, _, _ = collected(tmp_path / "a.xml")
    assert [(document.text, document.revision) for document in documents] == [("Dog\n\nNew text.", "1005")]


def test_each_file_is_a_part_known_by_its_state(tmp_path: Path) -> None:
    for name in "ba":
        (tmp_path / f"{name}.xml").write_bytes(dump(articles(1)))
    source = WikipediaDump(patterns=(f"{tmp_path}/*.xml", f"{tmp_path}/a.xml"))
    before = wiki_dump.plan(source, CollectionConfig(), tmp_path)
    assert [items for items, _ in before] == [(f"{tmp_path}/a.xml",), (f"{tmp_path}/b.xml",)]
    (tmp_path / "b.xml").write_bytes(dump(articles(2)))
    after = wiki_dump.plan(source, CollectionConfig(), tmp_path)
    assert before[0] == after[0] and before[1] != after[1]
    with pytest.raises(UserError, match="source 'wikipedia': no file matches 'absent"):
        wiki_dump.plan(replace(source, patterns=("absent*.bz2",)), CollectionConfig(), tmp_path)


def test_a_dump_at_a_url(tmp_path: Path) -> None:
    import fsspec

    with fsspec.open("memory://wiki/a.xml.bz2", "wb") as file:
        file.write(bz2.compress(dump(articles(3))))
    source = WikipediaDump(patterns=("memory://wiki/*.bz2",))
    ((items, _),) = wiki_dump.plan(source, CollectionConfig(), tmp_path)
    assert len(list(wiki_dump.read(source, 0, items, CollectionConfig()))) == 3


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.xml").write_bytes(dump([]))
    monkeypatch.setattr(wiki_dump, "_PACKAGES", ("mwxml-of-another-world",))
    with pytest.raises(UserError, match=r"needs the mwxml-of-another-world package: pip install -e '\.\[data\]'"):
        wiki_dump.plan(WikipediaDump(patterns=(f"{tmp_path}/a.xml",)), CollectionConfig(), tmp_path)


def test_memory_does_not_grow_with_the_number_of_pages(tmp_path: Path) -> None:
    import gc

    (tmp_path / "a.xml").write_bytes(dump([page(f"R{number}", "x", number, space=1) for number in range(3000)]))
    source = WikipediaDump(patterns=(str(tmp_path / "a.xml"),))
    alive = []
    for number, _ in enumerate(wiki_dump.read(source, 0, (str(tmp_path / "a.xml"),), CollectionConfig())):
        if number in (1000, 2900):
            gc.collect()
            alive.append(len(gc.get_objects()))
    assert alive[1] < alive[0] + 1000


def article(number: int) -> str:
    """A page as articles are: box, bold title, links, references, sections, a table, an end."""
    first, second, third = prose(number).split("\n")[:3]
    name = " ".join(words(number, 2)).title()
    return f"""{{{{short description|Thing}}}}
{{{{Infobox thing
| name = {name}
| length = {{{{convert|{number}|km|mi}}}}
}}}}
'''{name}''' ({{{{lang|fr|''Le {name}''}}}}) is {{{{convert|{number}|km}}}} from the [[city|cities]].\
<ref name="a">{{{{cite book|title=T|url=http://x.org/{number}}}}}</ref> {first}

== History ==
[[File:{name}.jpg|thumb|A caption of the [[picture]]]]
{second} Some of it stands elsewhere.<ref name="a" />
{{| class="wikitable"
! Year !! Name
|-
| 1900 || {name}
|}}
=== Later ===
{third}

== References ==
{{{{reflist}}}}
[[Category:Things]]"""


def test_a_dump_becomes_a_dataset(tmp_path: Path) -> None:
    pages = []
    for number in range(200):
        pages += [page(f"Title {number}", article(number), number)]
        pages += [page(f"Alias {number}", "#REDIRECT [[x]]", 500 + number, extra='<redirect title="x" />')] * 2
    (tmp_path / "wiki.xml.bz2").write_bytes(bz2.compress(dump([*pages, page("Bad", "x", extra="<surprise/>")])))
    config = replace(small_config(), sources=(WikipediaDump(patterns=(str(tmp_path / "wiki.xml.bz2"),)),))
    manifest = curate(config, tmp_path / "data", workers=1)
    stage = next(stage for stage in manifest["stages"] if stage["name"] == "collect")
    assert stage["documents_out"] == 200 and stage["dropped"] == {"redirect": 400, "invalid_page": 1}
    assert manifest["quarantine"] == {"invalid_page": 1}
    assert len(list(read_rows(tmp_path / "data" / "stages" / "quarantine.jsonl"))) == 1
    assert sum(split["documents"] for split in manifest["splits"].values()) == 200
    assert manifest["licences"] == {"CC-BY-SA-4.0": 200}
    assert read_json(tmp_path / "data" / "manifest.json") == manifest
    shards = sorted((tmp_path / "data" / "stages").glob("*_split/*.jsonl"))
    texts = {document.id: document.text for path in shards for document in read_documents(path)}
    first, second, third = prose(7).split("\n")[:3]
    name = " ".join(words(7, 2)).title()
    assert texts["wikipedia/enwiki/Title 7"] == (
        f"Title 7\n\n{name} (Le {name}) is 7 km from the cities. {first}\n\n"
        f"History\n\n{second} Some of it stands elsewhere.\n\nLater\n\n{third}"
    )
