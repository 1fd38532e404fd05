"""Web archives, whole and damaged, and the text of the pages in them."""

from __future__ import annotations

import gzip
import io
import os
import time
import zlib
from pathlib import Path

import fsspec
import pytest
import zstandard
from test_data_helpers import prose
from test_data_sources import collected
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from common.errors import UserError
from data_pipeline import collect
from data_pipeline.config import CollectionConfig
from data_pipeline.documents import Document, Quarantined, read_documents
from data_pipeline.sources import html
from data_pipeline.sources.config import WarcFiles
from data_pipeline.sources.html import UnreadablePage, decode_page, html_to_text, site_of
from data_pipeline.sources.warc import read

HTML = "text/html; charset=utf-8"
DATE = "2026-01-02T03:04:05Z"


def page(number: int, charset: str = "utf-8") -> str:
    """A page whose text ends in its number."""
    body = "".join(f"<p>{paragraph}</p>" for paragraph in prose(number).split("\n"))
    return (
        f'<html><head><meta charset="{charset}"><title>Page {number}</title></head><body><nav>Menu</nav><article>'
        f"<h1>Page {number}</h1>{body}<p>Naïve café, number {number}.</p></article>"
        "<footer>Imprint</footer></body></html>"
    )


def record(
    url: str,
    content: bytes,
    content_type: str = HTML,
    status: str = "200 OK",
    kind: str = "response",
    **headers: str,
) -> bytes:
    """One WARC record, uncompressed, as warcio writes it."""
    buffer = io.BytesIO()
    writer = WARCWriter(buffer, gzip=False)
    http = None
    if kind == "response":
        fields = [("Content-Type", content_type), *((name.replace("_", "-"), value) for name, value in headers.items())]
        http = StatusAndHeaders(status, fields, protocol="HTTP/1.1")
    made = writer.create_warc_record(
        url,
        kind,
        payload=io.BytesIO(content),
        warc_content_type="" if kind == "response" else content_type,
        warc_headers_dict={"WARC-Date": DATE},
        http_headers=http,
    )
    writer.write_record(made)
    return buffer.getvalue()


def pages(count: int, first: int = 0) -> list[bytes]:
    return [record(f"https://www.site{n % 3}.org/{n}", page(n).encode()) for n in range(first, first + count)]


def numbers(documents: list[Document]) -> list[int]:
    return [int(document.text.rstrip(".").rpartition(" ")[2]) for document in documents]


def write(path: Path, records: list[bytes]) -> WarcFiles:
    """The records in the format that the suffix names, a member each."""
    compress = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor(write_checksum=True).compress}
    path.write_bytes(b"".join(compress.get(path.suffix, bytes)(each) for each in records))
    return WarcFiles(patterns=(str(path),), licence="CC0-1.0")


def reasons(quarantined: list[dict[str, str]]) -> list[str]:
    return [row["reason"] for row in quarantined]


@pytest.mark.parametrize("suffix", [".warc", ".warc.gz", ".warc.zst"])
def test_pages_are_read_with_their_provenance(tmp_path: Path, suffix: str) -> None:
    source = write(tmp_path / f"a{suffix}", pages(5))
    documents, quarantined, _ = collected(source, tmp_path)
    assert numbers(documents) == [0, 1, 2, 3, 4] and not quarantined
    first = documents[0]
    assert first.text.startswith("Page 0\n") and "café" in first.text and "Menu" not in first.text
    assert (first.origin, first.revision, first.licence) == ("https://www.site0.org/0", DATE, "CC0-1.0")
    assert [document.group for document in documents[:4]] == ["site0.org", "site1.org", "site2.org", "site0.org"]
    assert len({document.id for document in documents}) == 5


def test_text_records_and_resources_are_pages_too(tmp_path: Path) -> None:
    text = f"{prose(1)} Naïve café."
    records = [
        record("https://a.org/1", text.encode(), "text/plain", kind="conversion"),
        record("https://a.org/2", page(2).encode(), "text/html", kind="resource"),
        record("https://a.org/3", text.encode("latin-1"), "text/plain; charset=latin-1"),
        record("https://a.org/4", b"fields: none", "application/warc-fields", kind="metadata"),
    ]
    documents, quarantined, _ = collected(write(tmp_path / "a.wet.gz", records), tmp_path)
    assert [document.text for document in documents][::2] == [text, text] and not quarantined
    assert numbers(documents[1:2]) == [2]


def test_records_that_are_no_pages_take_one_row_a_reason(tmp_path: Path) -> None:
    records = [
        *(record(f"https://a.org/{n}.png", os.urandom(100), "image/png") for n in range(40)),
        *(record(f"https://a.org/{n}", b"", status="301 Moved", Location="/") for n in range(30)),
        *(record(f"https://a.org/{n}", page(n).encode(), status="404 Not Found") for n in range(20)),
        record("dns:a.org", b"a.org. 300 IN A 1.2.3.4", "text/dns", kind="resource"),
        record("https://a.org/robots.txt", b"User-agent: *", "text/plain"),
        record("https://a.org/odd", page(1).encode(), status="odd"),
        record("https://a.org/br", b"\x0b\x02\x80", Content_Encoding="snappy"),
        *pages(2),
    ]
    (part,) = collect.plan([write(tmp_path / "a.warc.gz", records)], CollectionConfig(), tmp_path / "downloads")
    counts = collect.collect_part("00000", tmp_path / "out", part)
    documents = list(read_documents(tmp_path / "out" / "00000-000.jsonl"))
    assert numbers(documents) == [0, 1]
    assert counts.dropped == {
        "not_html": 41,
        "http_301": 30,
        "http_404": 20,
        "robots_txt": 1,
        "invalid_http": 1,
        "unknown_encoding": 1,
    }
    assert counts.documents_in == 96
    assert not (tmp_path / "out" / "dropped" / "00000.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("suffix", [".warc.gz", ".warc.zst"])
def test_damaged_members_cost_only_themselves(tmp_path: Path, suffix: str) -> None:
    source = write(tmp_path / f"a{suffix}", pages(6))
    content = bytearray((tmp_path / f"a{suffix}").read_bytes())
    magic = b"\x1f\x8b\x08" if suffix == ".warc.gz" else b"\x28\xb5\x2f\xfd"
    starts = [place for place in range(len(content)) if content.startswith(magic, place)]
    assert len(starts) == 6
    content[starts[1] + 100 : starts[1] + 140] = bytes(40)  # in the middle
    content[starts[3] : starts[3] + 2] = b"??"  # where it begins
    content[starts[5] - 3] ^= 1  # in the checksum of the one before
    (tmp_path / f"a{suffix}").write_bytes(content)
    documents, quarantined, _ = collected(source, tmp_path)
    assert numbers(documents) == [0, 2, 5]
    assert [(row["position"], row["reason"]) for row in quarantined] == [
        (f"byte {starts[number]}", "damaged_archive") for number in (1, 3, 4)
    ]


@pytest.mark.parametrize("suffix", [".warc", ".warc.gz", ".warc.zst"])
def test_a_truncated_file_gives_every_record_before_its_end(tmp_path: Path, suffix: str) -> None:
    source = write(tmp_path / f"a{suffix}", pages(4))
    content = (tmp_path / f"a{suffix}").read_bytes()
    (tmp_path / f"a{suffix}").write_bytes(content[:-200])
    documents, quarantined, _ = collected(source, tmp_path)
    assert numbers(documents) == [0, 1, 2]
    assert reasons(quarantined) == ["truncated_record" if suffix == ".warc" else "truncated_archive"]


def test_a_file_may_be_one_member(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(pages(30)))
    path = tmp_path / "a.warc.gz"
    source = WarcFiles(patterns=(str(path),))
    for content, fewest, expected in (
        (whole, 30, []),
        (whole[: 2 * len(whole) // 3], 15, ["truncated_archive"]),
        (whole[:-8] + bytes(8), 10, ["damaged_archive"]),
    ):
        path.write_bytes(content)
        found = list(read(source, 0, (str(path),), CollectionConfig()))
        documents = [each for each in found if isinstance(each, Document)]
        assert numbers(documents) == list(range(len(documents))) and len(documents) >= fewest
        assert [each.reason for each in found if isinstance(each, Quarantined)] == expected


def test_records_with_a_wrong_length_are_set_aside_and_reading_goes_on(tmp_path: Path) -> None:
    made = pages(7)
    lengths = [int(each.split(b"Content-Length: ")[1].split(b"\r\n")[0]) for each in made]

    def lie(each: int, length: bytes) -> bytes:
        return made[each].replace(b"Content-Length: %d" % lengths[each], b"Content-Length: " + length, 1)

    made[1] = lie(1, b"%d" % (lengths[1] - 50))
    made[3] = lie(3, b"long")
    made[5] = lie(5, b"%d" % (lengths[5] + 30))
    documents, quarantined, _ = collected(write(tmp_path / "a.warc", [b"junk\n", *made]), tmp_path)
    assert numbers(documents) == [0, 2, 4]  # the last lies within the length of the one before
    assert [(row["position"], row["reason"]) for row in quarantined] == [
        (f"after record {number}", "damaged_record") for number in (0, 1, 3, 5)
    ]


def test_content_is_unwrapped(tmp_path: Path) -> None:
    def chunked(content: bytes) -> bytes:
        parts = [content[place : place + 1000] for place in range(0, len(content), 1000)]
        return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"

    texts = [page(number).encode() for number in range(5)]
    records = [
        record("https://a.org/0", gzip.compress(texts[0]), Content_Encoding="gzip"),
        record("https://a.org/1", zlib.compress(texts[1]), Content_Encoding="deflate"),
        record("https://a.org/2", chunked(texts[2]), Transfer_Encoding="chunked"),
        record(
            "https://a.org/3", chunked(gzip.compress(texts[3])), Content_Encoding="GZIP", Transfer_Encoding="chunked"
        ),
        record(
            "https://a.org/4", texts[4], Content_Encoding="gzip", Transfer_Encoding="chunked"
        ),  # a crawler undid both
        record("https://a.org/5", gzip.compress(bytes(50_000_000)), Content_Encoding="gzip"),
    ]
    documents, quarantined, _ = collected(write(tmp_path / "a.warc.gz", records), tmp_path)
    assert numbers(documents) == [0, 1, 2, 3, 4]
    assert [(row["position"], row["reason"]) for row in quarantined] == [("record 6, https://a.org/5", "too_large")]


def test_large_records_are_passed_over_unread(tmp_path: Path) -> None:
    film = record("https://a.org/film", os.urandom(1_000_000))
    source = write(
        tmp_path / "a.warc.gz", [*pages(1), film, record("https://a.org/bomb", bytes(30_000_000)), *pages(1, 2)]
    )
    found = list(read(source, 0, source.patterns, CollectionConfig(max_record_bytes=20_000)))
    assert [getattr(each, "reason", "read") for each in found] == ["read", "too_large", "expands_too_much", "read"]


def test_a_dictionary_for_all_frames_is_used(tmp_path: Path) -> None:
    made = pages(60)
    dictionary = zstandard.train_dictionary(4000, made)
    compressor = zstandard.ZstdCompressor(dict_data=dictionary)
    packed = zstandard.compress(dictionary.as_bytes())
    path = tmp_path / "a.warc.zst"
    start = b"\x5d\x2a\x4d\x18" + len(packed).to_bytes(4, "little") + packed
    path.write_bytes(start + b"".join(map(compressor.compress, made[:5])))
    source = WarcFiles(patterns=(str(path),))
    assert numbers(collected(source, tmp_path)[0]) == [0, 1, 2, 3, 4]
    path.write_bytes(start[:8] + b"\x28\xb5\x2f\xfd" + bytes(40))
    assert reasons(collected(source, tmp_path / "again")[1]) == ["damaged_archive"]


def test_odd_files(tmp_path: Path) -> None:
    for name, content in {"empty": b"", "text": b"WARC\nnot one\n", "torn": b"WARC/1.0\r\nWARC-Type: resp"}.items():
        (tmp_path / f"{name}.warc").write_bytes(content)
    (tmp_path / "zeros.warc.gz").write_bytes(gzip.compress(pages(1)[0]) + bytes(100))
    found, quarantined, _ = collected(WarcFiles(patterns=(str(tmp_path / "*.warc*"),)), tmp_path)
    assert numbers(found) == [0]
    assert sorted(reasons(quarantined)) == ["damaged_archive", "damaged_record", "truncated_record"]


def test_archives_are_read_where_they_are(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("b", "a"):
        memory.pipe(f"/crawl/{name}.warc.gz", b"".join(map(gzip.compress, pages(2))))
    source = WarcFiles(patterns=("memory://crawl/*.gz",))
    parts = collect.plan([source], CollectionConfig(), tmp_path)
    assert [part.items for part in parts] == [(f"memory:///crawl/{name}.warc.gz",) for name in ("a", "b")]
    assert numbers(collected(source, tmp_path)[0]) == [0, 1, 0, 1]
    with pytest.raises(UserError, match=r"source 'warc': no file matches 'memory://none/a\.warc'"):
        collect.plan([WarcFiles(patterns=("memory://none/a.warc",))], CollectionConfig(), tmp_path)


CZECH = "Čeština je západoslovanský jazyk, nejbližší slovenštině. " * 10


@pytest.mark.parametrize(
    ("content", "declared"),
    [
        (CZECH.encode(), "iso-8859-1"),  # it lies
        (CZECH.encode("cp1250"), "windows-1250"),
        (CZECH.encode("cp1250"), "utf-8"),  # it lies, and detection finds the truth
        (CZECH.encode("iso8859-2"), "latin2"),
        (CZECH.encode("utf-16"), "utf-8"),
        (CZECH.encode("utf-16-be"), "utf-16be"),
        (b"\xef\xbb\xbf" + CZECH.encode(), "punycode"),
    ],
)
def test_encodings_are_known_by_their_bytes_first(content: bytes, declared: str) -> None:
    assert decode_page(content, declared) == CZECH


def test_encodings_that_look_like_ascii_are_decoded_as_declared() -> None:
    text = "これは日本語の文章です。" * 20
    assert decode_page(text.encode("iso2022_jp"), "iso-2022-jp") == text
    assert "\ufffd" in decode_page(CZECH.encode()[:-1] + b"\xc3", "iso-8859-1")  # cut inside a character
    with pytest.raises(UnreadablePage, match="invalid_encoding"):
        decode_page(bytes(range(128, 256)) * 30 + bytes(range(7)), "no-such-charset")


def test_odd_pages_neither_fail_nor_take_long() -> None:
    words = prose(1)
    assert html_to_text("") is None and html_to_text(b" \n") is None
    assert html_to_text("<html><head><title>Only a title</title></head></html>") is None
    assert html_to_text("<html><frameset><frame src=a></frameset></html>") is None
    assert html_to_text(f"<p>{words}") is not None and html_to_text(f"<html lang='en' /><p>{words}") is not None
    assert html_to_text(page(3).replace("Menu", "\0\x01\x0b")) == html_to_text(page(3))
    for odd in (
        "<html " * 100_000,
        "<!doctype " + "/ " * 100_000,
        '<script type="application/ld+json">' + '"@type":[' * 40_000 + "</script>",
    ):
        started = time.process_time()
        assert words[:40] in (html_to_text(f"{odd}><p>{words}") or "")
        assert time.process_time() - started < 5
    for nested, reason in (
        ("<div>" * 100_000 + words, "too_deep"),
        ("<div>" * 200 + "<i>x</i> " * 50_000, "too_complex"),
        ("<i>x</i> " * 110_000, "too_complex"),
    ):
        with pytest.raises(UnreadablePage, match=reason):
            html_to_text(nested)


def test_a_title_stands_first_and_once() -> None:
    body = f"<article><h1>The tower</h1><p>{prose(1)}</p></article>"
    for title, start in (
        ("The tower – A site", "The tower\n"),
        ("Another", "Another\n\nThe tower\n"),
        ("", "The tower\n"),
    ):
        text = html_to_text(f"<html><head><title>\n {title} </title></head><body>{body}</body></html>")
        assert text is not None and text.startswith(start)


def test_sites_are_registered_domains() -> None:
    sites = {"https://en.wikipedia.org/a": "wikipedia.org", "http://www.bbc.co.uk": "bbc.co.uk", "": ""}
    sites |= {"https://me.github.io/x": "me.github.io", "http://127.0.0.1:8000/": "127.0.0.1", "http://[::1": ""}
    assert {url: site_of(url) for url in sites} == sites


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "a.warc", pages(1))
    monkeypatch.setitem(__import__("sys").modules, "warcio", None)
    with pytest.raises(UserError, match=r"a WarcFiles source needs the warcio package: pip install -e '\.\[data\]'"):
        collect.plan([source], CollectionConfig(), tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "trafilatura", None)
    html._trafilatura.cache_clear()
    with pytest.raises(UserError, match="reading HTML needs the trafilatura package"):
        html_to_text("<p>x")
