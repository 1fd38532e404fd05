"""Debian packages as a source: reading .deb files that the tests build, and asking apt-get for them."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from test_data_sources import collected

from common.errors import UserError
from data_pipeline import collect
from data_pipeline.config import CollectionConfig
from data_pipeline.documents import Document
from data_pipeline.sources import deb, manuals
from data_pipeline.sources.config import DebianPackages
from data_pipeline.sources.layout import manual_page
from data_pipeline.sources.opening import ArchiveError
from data_pipeline.sources.roff import manual_text

GOOD = "A good page of a manual that must survive whatever stands around it."
COPYRIGHT = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nLicense: {}\n"
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    "": bytes,
}


def tar(files: dict[str, bytes], *others: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for other in others:
            archive.addfile(other)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def ar(members: dict[str, bytes]) -> bytes:
    data = b"!<arch>\n"
    for name, content in members.items():
        data += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        data += content + b"\n" * (len(content) % 2)
    return data


def package(data: bytes, suffix: str = ".xz", control: str = "Package: guide\nVersion: 1.0\n") -> bytes:
    compress = COMPRESSIONS[suffix]
    return ar(
        {
            "debian-binary": b"2.10\n",  # of an odd length
            f"control.tar{suffix}": compress(tar({"./control": control.encode()})),
            f"data.tar{suffix}": compress(data),
        }
    )


def put(tmp_path: Path, content: bytes, name: str = "guide_1.0_all.deb") -> DebianPackages:
    """Place a package where an earlier run would have left it: with a version in the config, apt-get is not asked."""
    path = tmp_path / "downloads" / "debian" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return DebianPackages(packages=("guide=1.0",))


def texts(documents: list[Document]) -> dict[str, str]:
    return {document.origin: document.text for document in documents}


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_a_package_is_read_whatever_its_compression(tmp_path: Path, suffix: str) -> None:
    data = tar({"./usr/share/doc/guide/README.txt": GOOD.encode()})
    documents, quarantined, _ = collected(put(tmp_path, package(data, suffix)), tmp_path)
    assert texts(documents) == {"guide/usr/share/doc/guide/README.txt": GOOD}
    assert not quarantined


def test_documents_say_where_they_come_from(tmp_path: Path) -> None:
    files = {
        "./usr/share/doc/guide/a.txt": GOOD.encode(),
        "./usr/share/doc/guide/copyright": COPYRIGHT.format("GPL-2+\n\nFiles: b\nLicense: Expat").encode(),
        "./usr/share/doc/guide/examples/run.py": b"print('hello')\n",
    }
    control = "Package: guide\nSource: guides (0.9)\nVersion: 1.0\n"
    documents, _, _ = collected(put(tmp_path, package(tar(files), control=control)), tmp_path)
    prose, code = documents
    assert (prose.kind, code.kind) == ("prose", "code")
    assert prose.id == "debian/guide/usr/share/doc/guide/a.txt"
    assert (prose.licence, prose.revision, prose.group) == ("GPL-2+, Expat", "guide=1.0", "guides")


def test_a_package_without_a_machine_readable_copyright_file_says_so(tmp_path: Path) -> None:
    files = {"./usr/share/doc/guide/a.txt": GOOD.encode(), "./usr/share/doc/guide/copyright": b"Free for all."}
    documents, _, _ = collected(put(tmp_path, package(tar(files))), tmp_path)
    assert [(document.licence, document.group) for document in documents] == [("see copyright file", "guide")]


def test_compressed_documents_inside_are_read_and_damaged_ones_cost_only_themselves(tmp_path: Path) -> None:
    page = gzip.compress(f"<html><body><p>{GOOD}</p></body></html>".encode())
    files = {
        "./usr/share/doc/guide/a.html.gz": page,
        "./usr/share/doc/guide/b.html.gz": page[:-20],
        "./usr/share/doc/guide/c.txt.gz": b"\x1f\x8b" + b"no gzip at all",
        "./usr/share/doc/guide/d.txt": b"caf\xe9",
        "./usr/share/doc/guide/e.txt": b"",
        "./usr/share/man/man1/f.1.gz": gzip.compress(b".Dd today\nmdoc\n"),
        "./usr/share/dictd/g.dict.dz": gzip.compress(GOOD.encode()),
    }
    documents, quarantined, _ = collected(put(tmp_path, package(tar(files))), tmp_path)
    assert set(texts(documents).values()) == {GOOD}
    assert [document.origin[-9:] for document in documents] == ["a.html.gz", "g.dict.dz"]
    assert [row["reason"] for row in quarantined] == [
        "truncated_archive",
        "damaged_archive",
        "invalid_utf8",
        "empty",
        "invalid_format",
    ]


def test_a_truncated_package_gives_what_comes_before_the_cut(tmp_path: Path) -> None:
    noise = b"".join(hashlib.sha256(bytes([n % 256, n // 256])).digest() for n in range(5000))
    whole = package(tar({"./a.txt": GOOD.encode(), "./b.png": noise, "./c.txt": GOOD.encode()}), ".gz")
    documents, quarantined, _ = collected(put(tmp_path, whole[:-2000]), tmp_path)
    assert list(texts(documents)) == ["guide/a.txt"]
    assert [(row["file"], row["position"], row["reason"]) for row in quarantined] == [
        ("guide/", "after b.png", "truncated_archive")
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not_a_package"),
        (b"PK\x03\x04 something else", "not_a_package"),
        (b"!<arch>\n", "truncated_archive"),
        (b"!<arch>\n" + b"x" * 60, "damaged_archive"),
        (ar({"debian-binary": b"2.0\n"}).replace(b"4         `", b"-4        `"), "damaged_archive"),
        (package(b"no tar archive" * 100, ""), "damaged_archive"),
        (package(tar({"./a.txt": b"x"}), ".xz")[:-8], "truncated_archive"),
    ],
)
def test_a_damaged_package_is_set_aside_with_a_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    _, quarantined, _ = collected(put(tmp_path, content), tmp_path)
    assert [row["reason"] for row in quarantined][-1:] == [reason]


def test_links_are_not_followed_and_hostile_names_stay_names(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret of this machine")
    link, device = tarfile.TarInfo("./usr/share/doc/guide/link.txt"), tarfile.TarInfo("./pipe.txt")
    link.type, link.linkname, device.type = tarfile.SYMTYPE, str(secret), tarfile.FIFOTYPE
    files = {
        "../../../../outside.txt": GOOD.encode(),
        "/etc/absolute.txt": GOOD.encode(),
        "a\nname\udcff.txt": GOOD.encode(),
    }
    before = sorted(tmp_path.rglob("*"))
    source = put(tmp_path, package(tar(files, link, device)))
    documents, _, _ = collected(source, tmp_path)
    assert {document.text for document in documents} == {GOOD}
    assert {document.origin for document in documents} == {
        "guide/../../../../outside.txt",
        "guide/etc/absolute.txt",
        "guide/a\nname\\udcff.txt",
    }
    assert {path.name for path in set(tmp_path.rglob("*")) - set(before)} == {
        *("downloads", "debian", "guide_1.0_all.deb", "guide_1.0_all.deb.sha256"),
        *("out", "dropped", "00000-000.jsonl", "00000.jsonl"),
    }


def test_a_header_without_end_stops_in_bounded_memory(tmp_path: Path) -> None:
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 8_000_000_000
    data = tar({"./a.txt": GOOD.encode()}).rstrip(b"\0")
    data += b"\0" * (-len(data) % 512) + long_name.tobuf(tarfile.GNU_FORMAT) + b"x" * 3_000_000
    documents, quarantined, _ = collected(put(tmp_path, package(data, ".gz")), tmp_path)
    assert list(texts(documents)) == ["guide/a.txt"]
    assert [row["reason"] for row in quarantined] == ["long_header"]


def test_a_package_that_expands_without_end_is_given_up(tmp_path: Path) -> None:
    bomb = package(tar({"./a.png": bytes(15_000_000), "./b.txt": GOOD.encode()}), ".xz")
    assert len(bomb) < 10_000
    documents, quarantined, _ = collected(put(tmp_path, bomb), tmp_path)
    assert not documents
    assert [row["reason"] for row in quarantined] == ["expands_too_much"]


def test_long_plain_files_are_read_in_pieces_and_long_pages_are_set_aside(tmp_path: Path) -> None:
    lines = "".join(f"Line {number} of a long file.\n" for number in range(2000))
    page = f"<html><body><p>{lines}</p></body></html>"
    data = tar({"./a.txt": lines.encode(), "./b.html": page.encode()})
    config = CollectionConfig(max_record_bytes=20_000, max_document_bytes=1_000_000)
    documents, quarantined, _ = collected(put(tmp_path, package(data)), tmp_path, config)
    assert "".join(document.text for document in documents) == lines
    assert len({document.id for document in documents}) == len(documents) > 1
    assert {document.whole for document in documents} == {"debian/guide/a.txt"}
    assert [(row["file"], row["reason"]) for row in quarantined] == [("guide/b.html", "too_large")]
    config = CollectionConfig(max_record_bytes=20_000, max_document_bytes=3000)  # which cuts the pieces once more
    documents, _, _ = collected(put(tmp_path / "cut", package(data)), tmp_path / "cut", config)
    assert "".join(document.text for document in documents) == lines
    assert len({document.id for document in documents}) == len(documents) > 10


def test_plain_text_beside_pages_in_html_is_taken_for_the_same_once_more(tmp_path: Path) -> None:
    pages = {f"./doc/{number}.html": f"<p>Page {number}.</p>".encode() for number in range(12)}
    files = {**pages, "./doc/guide.txt": GOOD.encode(), "./man/man1/a.1": b".TH A 1\n.SH NAME\na"}
    documents, _, _ = collected(put(tmp_path, package(tar(files))), tmp_path)
    assert {name.rpartition(".")[2] for name in texts(documents)} == {"html", "1"}


def test_only_texts_in_the_wanted_languages_are_read() -> None:
    wanted = [
        *("doc/guide/html/es/index.html", "help/C/intro.page", "man/man1/ls.1.gz", "man/fr/man1/ls.1.gz", "a.md"),
        *("doc/ca-certificates/README.txt", "doc/id-utils/html/a.html", "doc/sl/a.txt", "lib/id-utils/a.md"),
        *("doc/guide/examples/a.pl", "doc/guide/a.cs", "doc/guide/b.ml.gz", "doc/guide/a.tar.py", "doc/en-GB/a.txt"),
    ]
    refused = [
        *("doc/guide/changelog.Debian.gz", "doc/guide/copyright", "doc/guide/html/genindex.html", "doc/NEWS.txt"),
        *("doc/html/_sources/a.rst.txt", "doc/html/main_8cpp_source.html", "api/class-use/A.html", "logo.png"),
        *("html/de/index.html", "html/pt_BR/a.html", "handbook/zh-CN/a.html", "a.it.html", "man/ja/man1/ls.1.gz"),
        *("doc/guide/de/a.pl", "a.html.pl", "a.html.de", "man/de.UTF-8/man1/ls.1", "doc/guide/sr@latin/a.txt"),
        *("zh-Hans/a.md", "doc/guide/es-419/it/a.md"),
    ]
    languages = ("en", "es", "fr")
    assert [name for name in wanted + refused if manuals.is_text(f"usr/share/{name}", languages)] == wanted
    assert manuals.is_text("usr/share/html/de/index.html")


def test_what_is_left_out_for_its_language_is_counted(tmp_path: Path) -> None:
    data = tar({"./usr/share/doc/guide/de/a.txt": GOOD.encode(), "./a.txt": GOOD.encode(), "./logo.png": b"png"})
    source = replace(put(tmp_path, package(data)), languages=("en",))
    documents, quarantined, counts = collected(source, tmp_path)
    assert [document.text for document in documents] == [GOOD] and not quarantined
    assert counts.dropped == {"other_language": 1}


def test_a_manual_page_in_html_keeps_headings_terms_tables_and_listings() -> None:
    page = (
        "<html><head><title>no</title></head><body class='sidebar'><div class='navheader'>Next</div>"
        "<h1>\n  The <code>list</code>\n command<a class='headerlink'>¶</a></h1><!-- no -->"
        "<dl><dt>term</dt><dd>\n  What it\nmeans.</dd></dl><script>no()</script>"
        "<pre>if a:\n    b()</pre><table><tr><th>A</th><th>B</th></tr><tr><td>1</td><td>é</td></tr></table>"
        "<div class='footer'>no</div>after</body></html>"
    )
    assert manual_page(page.encode()) == (
        "The list command\n\nterm\n\nWhat it means.\n\nif a:\n    b()\n\nA\tB\n\n1\té\n\nafter"
    )


def test_a_mallard_page_is_read_without_what_it_says_of_itself_and_no_entity_reaches_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret of this machine")
    page = (
        f'<!DOCTYPE page [<!ENTITY secret SYSTEM "file://{secret}">]><page xmlns="http://projectmallard.org/1.0/">'
        "<info><credit><name>Someone</name></credit></info><title>Ayuda</title>"
        "<p>Pulse <gui>Guardar</gui>. &secret;</p></page>"
    )
    assert manual_page(page.encode(), xml=True).strip() == "Ayuda\n\nPulse Guardar."


def test_pages_that_cannot_be_parsed_raise_and_deep_ones_do_not() -> None:
    with pytest.raises(ValueError, match="not a page"):
        manual_page(b"")
    with pytest.raises(ValueError, match="not a page"):
        manual_page(b"\x00\x01", xml=True)
    assert isinstance(manual_page(b"<div>" * 50_000 + b"deep"), str)


def test_man_macros_become_paragraphs() -> None:
    source = (
        '.\\" a comment\n.TH LS 1\n.de XX\nhidden\n..\n.SH NAME\nls \\- list\n.SH OPTIONS\n'
        '.TP\n.BR \\-a ", " \\-\\-all\n'
        "all \\fIfiles\\fP,\neven those.\n.IP \\(bu 2\nA point.\n.nf\n  kept\n  so\n.fi\n.TS\na table\n.TE\n"
        "Caf\\[aq] at \\(Foguillemets\\(Fc.\n.SH AUTHOR\nSomeone\n.SH NOTES\nEnd.\n"
    )
    assert manual_text(source) == (
        "NAME\n\nls - list\n\nOPTIONS\n\n-a, --all\nall files, even those.\n\n• A point.\n\n  kept\n  so\n\n"
        "Caf' at «guillemets».\n\nNOTES\n\nEnd."
    )


def test_the_same_package_gives_the_same_plan_and_a_changed_one_another(tmp_path: Path) -> None:
    source = put(tmp_path, package(tar({"./a.txt": GOOD.encode()})))
    plans = [collect.plan([source], CollectionConfig(), tmp_path / "downloads") for _ in range(2)]
    assert plans[0] == plans[1]
    put(tmp_path, package(tar({"./a.txt": b"Another text."})))
    with pytest.raises(UserError, match="is damaged"):
        collect.plan([source], CollectionConfig(), tmp_path / "downloads")
    (tmp_path / "downloads" / "debian" / "guide_1.0_all.deb.sha256").unlink()
    assert collect.plan([source], CollectionConfig(), tmp_path / "downloads")[0].state != plans[0][0].state


def test_large_packages_are_parts_of_their_own(tmp_path: Path) -> None:
    put(tmp_path, package(tar({"./a.txt": GOOD.encode()})))
    put(tmp_path, package(tar({"./b.txt": GOOD.encode()})), "other_2%3a1_all.deb")
    source = DebianPackages(packages=("guide=1.0", "other=2:1"))
    assert len(collect.plan([source], CollectionConfig(), tmp_path / "downloads")) == 1
    assert len(collect.plan([source], CollectionConfig(shard_bytes=100), tmp_path / "downloads")) == 2


def test_a_package_that_is_not_what_was_downloaded_is_refused(tmp_path: Path) -> None:
    source = put(tmp_path, package(tar({"./a.txt": GOOD.encode()})))
    path = tmp_path / "downloads" / "debian" / "guide_1.0_all.deb"
    path.with_name(f"{path.name}.sha256").write_text(f"{hashlib.sha256(b'other').hexdigest()}  {path.name}\n")
    with pytest.raises(UserError, match="is damaged"):
        collect.plan([source], CollectionConfig(), tmp_path / "downloads")


def test_without_apt_get_the_plan_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt-get, which is not on this machine"):
        collect.plan([DebianPackages(packages=("guide",))], CollectionConfig(), tmp_path / "downloads")


@pytest.mark.parametrize("request_", ["--help", "Guide", "guide=", "a b", "guide=1;rm", "../guide"])
def test_what_is_not_a_package_name_never_reaches_apt_get(tmp_path: Path, request_: str) -> None:
    with pytest.raises(UserError, match="is not a package's name"):
        collect.plan([DebianPackages(packages=(request_,))], CollectionConfig(), tmp_path / "downloads")


def test_a_package_is_asked_for_in_one_version(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="guide is named more than once"):
        collect.plan([DebianPackages(packages=("guide", "guide=1.0"))], CollectionConfig(), tmp_path / "downloads")


APT_GET = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
  *unknown*) echo "E: Unable to locate package unknown" >&2; exit 100 ;;
  *--print-uris*) test -f *.deb || echo "'http://example.org/guide.deb' guide_1%3a2.0_all.deb 10 SHA256:0" ;;
  *guide=1:2.0*) cp {deb} guide_1%3a2.0_all.deb ;;
  *) exit 1 ;;
esac
"""


@pytest.fixture
def apt_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script in place of apt-get, which answers as it does; the file tells with what it was called."""
    log, built, programs = tmp_path / "calls.txt", tmp_path / "built.deb", tmp_path / "programs"
    built.write_bytes(package(tar({"./a.txt": GOOD.encode()})))
    programs.mkdir()
    (programs / "apt-get").write_text(APT_GET.format(log=log, deb=built))
    (programs / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return log


def test_a_name_takes_the_version_that_apt_would_and_is_downloaded_once(
    tmp_path: Path, apt_get: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = DebianPackages(packages=("guide",))
    documents, _, _ = collected(source, tmp_path)
    assert [document.revision for document in documents] == ["guide=1:2.0"]
    assert "guide is guide=1:2.0" in capsys.readouterr().out
    collect.plan([source], CollectionConfig(), tmp_path / "downloads")
    collect.plan([DebianPackages(packages=("guide=1:2.0",))], CollectionConfig(), tmp_path / "downloads")
    assert [line.split()[-2:] for line in apt_get.read_text().splitlines()] == [
        ["--print-uris", "guide"],
        ["download", "guide=1:2.0"],
        ["--print-uris", "guide"],
    ]
    assert sorted(path.name for path in (tmp_path / "downloads" / "debian").iterdir()) == [
        "guide_1%3a2.0_all.deb",
        "guide_1%3a2.0_all.deb.sha256",
    ]


def test_an_unknown_package_is_named_with_what_to_do(tmp_path: Path, apt_get: Path) -> None:
    with pytest.raises(UserError, match=r"a package \(Unable to locate package unknown\). Run `apt-get update`"):
        collect.plan([DebianPackages(packages=("unknown",))], CollectionConfig(), tmp_path / "downloads")


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_a_package_that_dpkg_builds_is_read(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: guide\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: a guide\n"
    )
    (root / "usr/share/doc/guide").mkdir(parents=True)
    (root / "usr/share/doc/guide/a.txt").write_text(GOOD)
    built = tmp_path / "guide.deb"
    assert os.system(f"dpkg-deb --build {root} {built} > /dev/null") == 0
    documents, _, _ = collected(put(tmp_path, built.read_bytes()), tmp_path)
    assert texts(documents) == {"guide/usr/share/doc/guide/a.txt": GOOD}


def test_members_of_an_archive_that_is_not_there_raise(tmp_path: Path) -> None:
    path = tmp_path / "a.deb"
    path.write_bytes(ar({"debian-binary": b"2.0\n"}))
    with pytest.raises(ArchiveError, match="truncated_archive"):
        list(deb.members(path, "data"))
