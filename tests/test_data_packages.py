"""Wheels as a source: each is made here, hostile ones included, and given to pip from a local directory."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest
from test_data_sources import GOOD, collected

from common.errors import UserError
from data_pipeline import collect
from data_pipeline.config import CollectionConfig
from data_pipeline.sources import pypi
from data_pipeline.sources.config import PyPIPackages

CODE = "def first():\n    return 1\n"
Members = dict["str | zipfile.ZipInfo", "str | bytes"]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one place where pip looks for packages."""
    path = tmp_path / "index"
    path.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return path


def wheel(directory: Path, members: Members, metadata: str = "License-Expression: MIT\n", name: str = "demo") -> Path:
    path = directory / f"{name}-1.0-py3-none-any.whl"
    information = f"{name}-1.0.dist-info"
    directory.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for member, content in members.items():
            archive.writestr(member, content)
        archive.writestr(f"{information}/METADATA", f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n{metadata}")
        archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{information}/RECORD", "")
    return path


def packages(*requirements: str, **fields: tuple[str, ...]) -> PyPIPackages:
    return PyPIPackages(requirements=requirements or ("demo==1.0",), **fields)  # type: ignore[arg-type]


def test_a_wheel_is_downloaded_once_and_read_with_its_provenance(index: Path, tmp_path: Path) -> None:
    made = wheel(
        index,
        {
            "demo/__init__.py": CODE,
            "demo/guide.md": GOOD,
            "demo/fast.c": "int one;\n",
            "demo/_vendor/other.py": CODE,
            "demo/tests/fixtures/case.py": CODE,
            "demo/table.csv": "1,2\n",
            "demo-1.0.dist-info/licenses/LICENSE.txt": "words",
        },
    )
    documents, quarantined, _ = collected(packages(), tmp_path)
    assert not quarantined
    assert [(document.origin, document.kind) for document in documents] == [
        (f"{made.name}/demo/__init__.py", "code"),
        (f"{made.name}/demo/guide.md", "prose"),
        (f"{made.name}/demo/fast.c", "code"),
    ]
    assert {(document.group, document.revision, document.licence) for document in documents} == {
        ("demo", "demo==1.0", "MIT")
    }
    store = tmp_path / "downloads" / "packages"
    sha256 = hashlib.sha256(made.read_bytes()).hexdigest()
    assert (store / f"{made.name}.sha256").read_text() == f"{sha256}  {made.name}\n"
    before = collect.plan([packages()], CollectionConfig(), tmp_path / "downloads")
    made.unlink()
    assert collect.plan([packages("Demo==1.0")], CollectionConfig(), tmp_path / "downloads")[0].state == before[0].state
    (store / made.name).write_bytes(b"other")
    with pytest.raises(UserError, match=r"is damaged: its sha256 .*delete both"):
        collect.plan([packages()], CollectionConfig(), tmp_path / "downloads")


def member(name: str, **fields: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_DEFLATED
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def test_hostile_members_are_set_aside_and_the_rest_is_read(tmp_path: Path) -> None:
    first, again = member("demo/twice.py"), member("demo/twice.py")
    made = wheel(
        tmp_path / "downloads" / "packages",
        {
            "demo/good.py": CODE,
            "../../escaped.py": CODE,
            "/etc/absolute.py": CODE,
            "demo\\windows.py": CODE,
            "c:/drive.py": CODE,
            "demo//double.py": CODE,
            "demo/line\nbreak.py": CODE,
            "demo/na\u00efve.py": CODE,
            member("demo/link.py", external_attr=(stat.S_IFLNK | 0o777) << 16): "/etc/passwd",
            first: "first = 1\n",
            again: "second = 2\n",
            member("demo/odd.py", compress_type=zipfile.ZIP_BZIP2): CODE,
            "demo/huge.py": b"#" * 30_000_000,
            "demo/latin.py": b"name = 'caf\xe9'\n",
            "demo/binary.py": b"\0\1",
            "demo/broken.py": "this will be damaged = 1\n" * 3,
        },
    )
    content = bytearray(made.read_bytes())
    place = content.index(b"demo/broken.py") + len("demo/broken.py") + 4
    content[place : place + 4] = b"\xff" * 4
    made.write_bytes(content)
    documents, quarantined, _ = collected(packages(), tmp_path)
    assert [document.text for document in documents] == [CODE, CODE, "second = 2\n"]
    assert documents[1].origin.endswith("demo/na\u00efve.py")
    found = {(row["file"].removeprefix(f"{made.name}/"), row["reason"]) for row in quarantined}
    assert found == {
        ("../../escaped.py", "unsafe_name"),
        ("/etc/absolute.py", "unsafe_name"),
        ("demo\\windows.py", "unsafe_name"),
        ("c:/drive.py", "unsafe_name"),
        ("demo//double.py", "unsafe_name"),
        ("demo/line\nbreak.py", "unsafe_name"),
        ("demo/link.py", "symbolic_link"),
        ("demo/twice.py", "repeated_name"),
        ("demo/odd.py", "not_a_wheel"),
        ("demo/huge.py", "too_large"),
        ("demo/latin.py", "invalid_encoding"),
        ("demo/binary.py", "binary"),
        ("demo/broken.py", "damaged_archive"),
    }
    assert not list(tmp_path.rglob("escaped.py"))


def test_names_that_are_not_utf8_are_set_aside(tmp_path: Path) -> None:
    made = wheel(tmp_path / "downloads" / "packages", {"demo/good.py": CODE, "demo/caf_.py": CODE})
    made.write_bytes(made.read_bytes().replace(b"demo/caf_.py", b"demo/caf\xe9.py"))
    documents, quarantined, _ = collected(packages(), tmp_path)
    assert len(documents) == 1 and [row["reason"] for row in quarantined] == ["unsafe_name"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({f"demo/{number}.py": b"#" * 3_900_000 for number in range(6)}, "expands_too_much"),
        (b"this is no archive", "damaged_archive"),
        (b"", "damaged_archive"),
    ],
)
def test_an_archive_that_cannot_be_trusted_is_set_aside_whole(
    tmp_path: Path, content: Members | bytes, reason: str
) -> None:
    store = tmp_path / "downloads" / "packages"
    made = wheel(store, content if isinstance(content, dict) else {})
    if isinstance(content, bytes):
        made.write_bytes(content)
    wheel(store, {"other/good.py": CODE}, name="other")
    documents, quarantined, _ = collected(packages("demo==1.0", "other==1.0"), tmp_path)
    assert [document.group for document in documents] == ["other"]
    assert [(row["file"], row["reason"]) for row in quarantined] == [(made.name, reason)]


@pytest.mark.parametrize(
    ("metadata", "licence_text", "expected"),
    [
        ("License-Expression: BSD-3-Clause\n", "", "BSD-3-Clause"),
        ("Classifier: License :: OSI Approved :: MIT License\n", "", "MIT License"),
        ("", "Apache License\nVersion 2.0, January 2004", "Apache-2.0"),
        ("Author: L\u00e9on\n", "Ask me.", "unknown"),
        ("License: GPL-3.0\n", "", "GPL-3.0"),
    ],
)
def test_the_licence_is_what_the_metadata_declare_or_the_licence_file_says(
    tmp_path: Path, metadata: str, licence_text: str, expected: str
) -> None:
    files: Members = {"demo/good.py": CODE, "demo/own.py": f"# SPDX-License-Identifier: ISC\n{CODE}"}
    if licence_text:
        files["demo-1.0.dist-info/licenses/LICENSE"] = licence_text
    wheel(tmp_path / "downloads" / "packages", files, metadata)
    documents, _, _ = collected(packages(refused_licences=()), tmp_path)
    assert [document.licence for document in documents] == [expected, "ISC"]


@pytest.mark.parametrize("metadata", ["License: GPL-3.0\n", ""])
def test_a_refused_licence_costs_the_files_that_name_no_other(tmp_path: Path, metadata: str) -> None:
    files: Members = {"demo/good.py": CODE, "demo/own.py": f"# SPDX-License-Identifier: ISC\n{CODE}"}
    wheel(tmp_path / "downloads" / "packages", files, metadata)
    documents, quarantined, _ = collected(packages(), tmp_path)
    assert [document.licence for document in documents] == ["ISC"]
    assert [row["reason"] for row in quarantined] == ["refused_licence" if metadata else "unknown_licence"]


def test_the_code_of_a_source_distribution_is_never_run(index: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    files = {
        "demo-1.0/setup.py": f"open({str(marker)!r}, 'w')\nfrom setuptools import setup\nsetup(name='demo')\n",
        "demo-1.0/PKG-INFO": "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n",
    }
    with tarfile.open(index / "demo-1.0.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    with pytest.raises(UserError, match=r"(?s)could not download demo==1\.0.*GitRepositories source") as caught:
        collect.plan([packages()], CollectionConfig(), tmp_path / "downloads")
    assert "pip download --no-deps --only-binary=:all: --dest" in str(caught.value)
    assert not marker.exists() and not list((tmp_path / "downloads" / "packages").iterdir())


@pytest.mark.parametrize(
    "requirement", ["demo", "demo>=1", "demo==1.*", "demo[extra]==1.0", "--index-url==x", "demo==1 "]
)
def test_a_requirement_without_an_exact_version_is_named(requirement: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not name a package and its exact version"):
        collect.plan([packages(requirement)], CollectionConfig(), tmp_path)


def test_a_version_must_be_written_as_the_wheel_has_it(index: Path, tmp_path: Path) -> None:
    wheel(index, {"demo/good.py": CODE})
    with pytest.raises(UserError, match=r"the wheel of demo==1\.0\.0 is demo-1\.0-py3-none-any\.whl"):
        collect.plan([packages("demo==1.0.0")], CollectionConfig(), tmp_path / "downloads")


def test_packages_without_a_fitting_file_are_an_error(tmp_path: Path) -> None:
    wheel(tmp_path / "packages", {"demo/good.py": CODE})
    with pytest.raises(UserError, match=r"no code or documentation files with the suffixes \.md"):
        collect.plan([packages(suffixes=(".md",))], CollectionConfig(), tmp_path)


def test_a_download_that_is_killed_leaves_no_wheel(index: Path, tmp_path: Path) -> None:
    wheel(index, {"demo/good.py": CODE})
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom data_pipeline.sources import downloading\n"
        "downloading.sync_file = lambda path: os._exit(9)\n"  # the last thing before the wheel gets its name
        "downloading.download_wheel('demo==1.0', Path(sys.argv[1]), '')\n"
    )
    root = Path(__file__).parent.parent
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a")], cwd=root, check=False)
    assert killed.returncode == 9 and not list((tmp_path / "a").glob("*.whl"))
    assert pypi.fetch("demo", "1.0", tmp_path / "a")[0].name == "demo-1.0-py3-none-any.whl"
