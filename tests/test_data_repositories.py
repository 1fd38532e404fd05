"""Git repositories as a source, and the licences of what is in them. Every repository is made here, with Git."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from importlib import metadata
from pathlib import Path

import pytest
from test_data_sources import GOOD, collected, reasons

from common.errors import UserError
from data_pipeline import collect
from data_pipeline.config import CollectionConfig
from data_pipeline.documents import Document
from data_pipeline.sources import git_repository, licences
from data_pipeline.sources.config import GitRepositories

MIT = (
    "MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining a copy of this software and "
    'associated documentation files (the "Software"), to deal\nin the Software without restriction\n'
)
CODE = "def first():\n    return 1\n"


def git(repository: Path, *arguments: str) -> str:
    identity = {f"GIT_{role}_{field}": "a@b.c" for role in ("AUTHOR", "COMMITTER") for field in ("NAME", "EMAIL")}
    dates = {"GIT_AUTHOR_DATE": "2020-01-01T00:00:00Z", "GIT_COMMITTER_DATE": "2020-01-01T00:00:00Z"}
    command = ["git", "-C", str(repository), *arguments]
    environment = {**os.environ, **identity, **dates, "GIT_CONFIG_GLOBAL": os.devnull}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def commit(repository: Path, files: dict[str, str | bytes], message: str = "change") -> str:
    """Write `files`, add everything and commit it; the repository is made where there is none."""
    if not (repository / ".git").is_dir():
        repository.mkdir(parents=True)
        git(repository, "init", "--quiet", "--initial-branch=main")
    for name, content in files.items():
        path = repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    git(repository, "add", "--all", "--force")
    git(repository, "commit", "--quiet", "--message", message)
    return git(repository, "rev-parse", "HEAD")


def source_of(*entries: str, **fields: tuple[str, ...]) -> GitRepositories:
    return GitRepositories(repositories=entries, **fields)  # type: ignore[arg-type]


def paths(documents: list[Document]) -> list[str]:
    return [document.id.partition("@")[2].partition("/")[2] for document in documents]


def test_code_and_documentation_are_read_with_their_provenance(tmp_path: Path) -> None:
    sha = commit(
        tmp_path / "a", {"LICENSE": MIT, "src/one.py": CODE, "README.md": GOOD, "data.json": "{}", "x.png": b""}
    )
    url = f"file://{tmp_path}/a"
    (readme, code), quarantined, _ = collected(source_of(f"{url}@main"), tmp_path)
    assert not quarantined
    assert (readme.kind, readme.text, readme.origin) == ("prose", GOOD, f"{url}@{sha}/README.md")
    assert (code.kind, code.text, code.origin) == ("code", CODE, f"{url}@{sha}/src/one.py")
    assert (code.licence, code.revision, code.group) == ("MIT", sha, url)
    assert code.id == f"repositories/{url}@{sha}/src/one.py"


def test_branches_tags_and_commits_name_what_they_named_when_first_asked(tmp_path: Path) -> None:
    first = commit(tmp_path / "a", {"LICENSE": MIT, "old.py": "value = 1\n", "gone.py": "value = 2\n"})
    git(tmp_path / "a", "tag", "--annotate", "v1", "--message", "one")
    git(tmp_path / "a", "branch", "feature/x")
    git(tmp_path / "a", "mv", "old.py", "new.py")
    git(tmp_path / "a", "rm", "--quiet", "gone.py")
    second = commit(tmp_path / "a", {"later.py": "value = 3\n"})
    third = commit(tmp_path / "a", {"later.py": "value = 4\n"})
    for revision, sha, expected in (
        ("v1", first, ["gone.py", "old.py"]),
        ("feature/x", first, ["gone.py", "old.py"]),
        (first, first, ["gone.py", "old.py"]),
        (second, second, ["later.py", "new.py"]),  # nothing else names it
        ("main", third, ["later.py", "new.py"]),
        ("HEAD", third, ["later.py", "new.py"]),
    ):
        out = tmp_path / revision.replace("/", "-")
        (out / "downloads").parent.mkdir()
        (out / "downloads").symlink_to(tmp_path)
        documents, _, _ = collected(source_of(f"{tmp_path}/a@{revision}"), out)
        assert paths(documents) == expected and documents[0].revision == sha
    assert sorted(path.name for path in (tmp_path / "repositories").glob("*.git")) == sorted(
        f"a-{sha}.git" for sha in (first, second, third)
    )


def test_a_rerun_needs_no_network_and_a_moved_branch_changes_nothing_until_asked(tmp_path: Path) -> None:
    first = commit(tmp_path / "a", {"LICENSE": MIT, "one.py": CODE})
    source, config, downloads = source_of(f"file://{tmp_path}/a@main"), CollectionConfig(), tmp_path / "downloads"
    before = collect.plan([source], config, downloads)
    second = commit(tmp_path / "a", {"two.py": CODE})
    assert collect.plan([source], config, downloads) == before and first in before[0].state
    shutil.move(tmp_path / "a", tmp_path / "elsewhere")
    assert collect.plan([source], config, downloads) == before
    assert len(collected(source, tmp_path)[0]) == 1
    shutil.move(tmp_path / "elsewhere", tmp_path / "a")
    next((downloads / "repositories").glob("*.json")).unlink()
    after = collect.plan([source], config, downloads)
    assert second in after[0].state and first not in after[0].state


def test_whatever_is_odd_in_a_tree_costs_only_itself(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    commit(
        folder,
        {
            "LICENSE": MIT,
            "good.py": CODE,
            "windows.py": CODE.replace("\n", "\r\n").encode(),
            "bom.py": b"\xef\xbb\xbf" + CODE.encode(),
            "empty.py": b"",
            "latin.py": b"name = 'caf\xe9'\n",
            "binary.ts": b"G\0\0\x10",
            "stored.md": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "large.py": b"x = 1\n" * 1_700_000,
            "own.py": f"# SPDX-License-Identifier: GPL-3.0-or-later\n{CODE}",
            "vendor/copy.py": CODE,
            "web/node_modules/left/pad.js": CODE,
            "tests/fixtures/sample.py": CODE,
            "lib.min.js": CODE,
            "wire_pb2.py": CODE,
            "a\nb.py": CODE,
        },
    )
    os.symlink("good.py", folder / "link.py")
    (Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.py"))).write_text(CODE)
    git(folder, "add", "--all", "--force")
    git(folder, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},module.py")
    git(folder, "commit", "--quiet", "--message", "odd")
    documents, quarantined, counts = collected(source_of(f"{folder}@main"), tmp_path)
    assert paths(documents) == ["a\nb.py", "bom.py", "caf\\xe9.py", "good.py", "windows.py"]
    assert documents[1].text == CODE and documents[4].text == CODE.replace("\n", "\r\n")
    assert sorted((row["file"].rpartition("/")[2], row["position"], row["reason"]) for row in quarantined) == [
        ("binary.ts", "byte 1", "binary"),
        ("empty.py", "whole document", "empty"),
        ("large.py", "whole file", "too_large"),
        ("latin.py", "byte 11", "invalid_encoding"),
        ("own.py", "whole file, GPL-3.0-or-later", "refused_licence"),
        ("stored.md", "whole file", "large_file_pointer"),
    ]
    assert counts.documents_in == 11


def test_the_nearest_licence_holds_and_an_unknown_one_is_refused_unless_asked_for(tmp_path: Path) -> None:
    commit(
        tmp_path / "a",
        {
            "one.py": CODE,
            "part/LICENSE-MIT": MIT,
            "part/LICENSE-APACHE.txt": "Apache License\nVersion 2.0, January 2004\n",
            "part/deep/two.py": CODE,
            "part/license.py": CODE,
            "part/mine/COPYING": "GNU GENERAL PUBLIC LICENSE\n  Version 2, June 1991\n",
            "part/mine/three.py": CODE,
        },
    )
    documents, quarantined, _ = collected(source_of(f"{tmp_path}/a@main"), tmp_path)
    assert {path: document.licence for path, document in zip(paths(documents), documents, strict=True)} == {
        "part/deep/two.py": "Apache-2.0 AND MIT",
        "part/license.py": "Apache-2.0 AND MIT",
    }
    assert reasons(quarantined) == [
        ("whole file, unknown", "unknown_licence"),
        ("whole file, GPL-2.0", "refused_licence"),
    ]
    everything, quarantined, _ = collected(source_of(f"{tmp_path}/a@main", refused_licences=()), tmp_path / "all")
    assert [document.licence for document in everything] == ["unknown", *["Apache-2.0 AND MIT"] * 2, "GPL-2.0"]


def test_parts_follow_the_size_of_a_shard_and_several_repositories_stay_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        commit(tmp_path / name, {"LICENSE": MIT, **{f"{number}.py": CODE * 100 for number in range(10)}})
    config = CollectionConfig(shard_bytes=6000)
    entries = (f"{tmp_path}/a@main", f"{tmp_path}/b@main", f"{tmp_path}/a@main")
    parts = collect.plan([source_of(*entries)], config, tmp_path / "downloads")
    assert len(parts) == 10 and len({part.state for part in parts}) == 10
    documents, _, _ = collected(source_of(*entries), tmp_path, config)
    assert len({document.id for document in documents}) == len(documents) == 20
    assert {document.group for document in documents} == {f"{tmp_path}/a", f"{tmp_path}/b"}
    only_text = source_of(*entries, suffixes=(".md",))
    with pytest.raises(UserError, match=r"no code or documentation files with the suffixes \.md"):
        collect.plan([only_text], config, tmp_path / "downloads")


def test_nothing_of_a_repository_is_run_or_checked_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker, template = tmp_path / "ran", tmp_path / "template"
    (template / "hooks").mkdir(parents=True)
    for hook in ("reference-transaction", "post-checkout"):
        (template / "hooks" / hook).write_text(f"#!/bin/sh\ntouch {marker}\n")
        (template / "hooks" / hook).chmod(0o755)
    settings = tmp_path / "gitconfig"
    settings.write_text(
        f"[init]\n templateDir = {template}\n[core]\n hooksPath = {template}/hooks\n"
        f'[filter "lfs"]\n smudge = touch {marker}\n required = true\n'
        '[protocol "ext"]\n allow = always\n'
    )
    attributes = "*.py filter=lfs\n"
    commit(tmp_path / "a", {"LICENSE": MIT, "one.py": CODE, ".gitattributes": attributes, ".gitmodules": "[submodule]"})
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(tmp_path / "elsewhere"))
    documents, _, _ = collected(source_of(f"file://{tmp_path}/a@main"), tmp_path)
    assert [document.text for document in documents] == [CODE] and not marker.exists()
    assert not list((tmp_path / "downloads" / "repositories").glob("*.git/hooks"))
    with pytest.raises(UserError, match="not allowed"):
        collect.plan([source_of(f"ext::touch {marker}@main")], CollectionConfig(), tmp_path)
    assert not marker.exists()


def test_a_fetch_that_is_killed_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    sha = commit(tmp_path / "a", {"LICENSE": MIT, "one.py": CODE})
    # A pack program that never ends: the fetch stands still in its midst.
    settings, slow, started = tmp_path / "gitconfig", tmp_path / "slow", tmp_path / "started"
    slow.write_text(f"#!/bin/sh\necho $$ > {started}\nexec sleep 60\n")
    slow.chmod(0o755)
    settings.write_text(f"[uploadpack]\n packObjectsHook = {slow}\n")
    program = (
        "import sys\nfrom pathlib import Path\nfrom data_pipeline.sources import git_repository\n"
        "git_repository.fetch(sys.argv[1], sys.argv[2], Path(sys.argv[3]))\n"
    )
    url, store = f"file://{tmp_path}/a", tmp_path / "downloads" / "repositories"
    process = subprocess.Popen(
        [sys.executable, "-c", program, url, sha, str(store)],
        env={**os.environ, "GIT_CONFIG_GLOBAL": str(settings), "PYTHONPATH": str(Path(__file__).parent.parent)},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 30
        while not (started.is_file() and started.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
        os.kill(int(started.read_text()), signal.SIGKILL)
    assert list(store.glob("*.tmp")) and not list(store.glob("*.git"))
    documents, _, _ = collected(source_of(f"{url}@{sha}"), tmp_path)
    assert [document.text for document in documents] == [CODE]
    assert not list(store.glob("*.tmp")) and len(list(store.glob("*.git"))) == 1


def test_a_damaged_copy_is_an_error_and_not_other_text(tmp_path: Path) -> None:
    sha = commit(tmp_path / "a", {"LICENSE": MIT, "one.py": CODE})
    source = source_of(f"{tmp_path}/a@{sha}")
    parts = collect.plan([source], CollectionConfig(), tmp_path / "downloads")
    copy = git_repository.fetch(f"{tmp_path}/a", sha, tmp_path / "downloads" / "repositories")
    (pack,) = (path.rename(copy / "one.pack") for path in copy.glob("objects/pack/*.pack"))
    shutil.rmtree(copy / "objects" / "pack")
    with pytest.raises(UserError, match=r"is damaged .*delete it and run the command again"):
        collect.plan([source], CollectionConfig(), tmp_path / "downloads")
    subprocess.run(["git", f"--git-dir={copy}", "unpack-objects", "-q"], stdin=pack.open("rb"), check=True)
    (blob,) = (item for item in parts[0].items if isinstance(item, git_repository.Blob))
    loose = copy / "objects" / blob.object_id[:2] / blob.object_id[2:]
    loose.chmod(0o644)
    loose.write_bytes(zlib.compress(b"blob %d\0" % blob.size + CODE.replace("1", "2").encode()))
    with pytest.raises(UserError, match=r"one\.py is not what it was.*delete it"):
        list(git_repository.read(source, 0, parts[0].items, CollectionConfig()))
    loose.unlink()
    with pytest.raises(UserError, match=r"one\.py is missing.*delete it"):
        list(git_repository.read(source, 0, parts[0].items, CollectionConfig()))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("https://example.org/a/b", "does not name a repository and a revision"),
        ("git@example.org:a/b.git", "does not name a repository and a revision"),
        ("ssh://git@example.org/a", "does not name a repository and a revision"),
        ("/some/where@--upload-pack=x", "does not name a repository and a revision"),
        ("https://someone:secret@example.org/a@main", "^a repository address at example.org/a holds a user name"),
        ("ssh://git:secret@example.org/a@main", "holds a user name or password"),
    ],
)
def test_an_entry_that_cannot_be_meant_is_named(entry: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        git_repository.split_revision(entry)


def test_addresses_and_revisions_are_told_apart() -> None:
    assert git_repository.split_revision("git@example.org:a/b.git@v1") == ("git@example.org:a/b.git", "v1")
    assert git_repository.split_revision("../here@feature/x") == ("../here", "feature/x")


def test_what_cannot_be_fetched_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(tmp_path / "a", {"one.py": CODE})
    config = CollectionConfig()
    for entry, message in (
        (f"{tmp_path}/a@absent", "has no branch or tag 'absent'"),
        (f"{tmp_path}/none@main", "could not reach .*/none"),
        (f"{tmp_path}/a@{'1' * 40}", "could not fetch commit 1+ of .*/a"),
    ):
        with pytest.raises(UserError, match=message):
            collect.plan([source_of(entry)], config, tmp_path / "downloads")
    assert not list((tmp_path / "downloads").rglob("*.git"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs git, which is not installed"):
        collect.plan([source_of(f"{tmp_path}/a@main")], config, tmp_path / "fresh")


GRANT = "Redistribution and use in source and binary forms, with or without\nmodification, are permitted"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MIT, "MIT"),
        (f"Copyright (c) 2020 Somebody\n\n{GRANT} provided that", "BSD-2-Clause"),
        (f"{GRANT}\n* Neither the name may be used to endorse\n* or promote products", "BSD-3-Clause"),
        (f"{GRANT}\n3. All advertising materials mentioning features", "BSD-4-Clause"),
        ("                 Apache License\n           Version 2.0, January 2004", "Apache-2.0"),
        ("GNU GENERAL PUBLIC LICENSE\n   Version 2, June 1991", "GPL-2.0"),
        ("GNU GENERAL PUBLIC LICENSE\n Version 3, 29 June 2007\nuse the GNU Lesser General Public License", "GPL-3.0"),
        ("GNU LESSER GENERAL PUBLIC LICENSE\n Version 2.1, February 1999", "LGPL-2.1"),
        ("GNU LIBRARY GENERAL PUBLIC LICENSE\n Version 2, June 1991", "LGPL-2.0"),
        ("GNU AFFERO GENERAL PUBLIC LICENSE\n Version 3, 19 November 2007", "AGPL-3.0"),
        (
            "# it under the terms of the GNU General Public License as published by\n"
            "# the Free Software Foundation; either version 2 of the License",
            "GPL-2.0",
        ),
        ("Mozilla Public License Version 2.0\nmeans the GNU General Public License, Version 2.0", "MPL-2.0"),
        ("// This Source Code Form is subject to the terms of the Mozilla Public\n// License, v. 2.0.", "MPL-2.0"),
        (
            "Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is "
            "hereby granted, provided that the above",
            "ISC",
        ),
        (
            "Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is "
            "hereby granted.",
            "0BSD",
        ),
        ("This is free and unencumbered software released into the public domain.", "Unlicense"),
        ("Creative Commons Legal Code\n\nCC0 1.0 Universal", "CC0-1.0"),
        ("Creative Commons Attribution-NonCommercial-ShareAlike 4.0 International", "CC-BY-NC-SA-4.0"),
        ("PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2", "PSF-2.0"),
        ("Boost Software License - Version 1.0 - August 17th, 2003", "BSL-1.0"),
        ("2. Altered source versions must be plainly marked as such", "Zlib"),
        (
            "/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */",
            "(GPL-2.0 WITH Linux-syscall-note) OR MIT",
        ),
        ("<!-- SPDX-License-Identifier: CC-BY-4.0 -->", "CC-BY-4.0"),
        ("# SPDX-License-Identifier: MIT\n# Copyright OR something", "MIT"),
        (f"{MIT}\nBundled:\nApache License, Version 2.0", "Apache-2.0 AND MIT"),
        ("All rights reserved. Ask before you copy.", "unknown"),
        ("", "unknown"),
    ],
)
def test_licences_are_recognised_by_their_texts(text: str, expected: str) -> None:
    assert licences.recognise(text) == expected
    assert licences.recognise("\n".join(f" * {line}" for line in text.splitlines())) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("pytest", "MIT"), ("jinja2", "BSD-3-Clause"), ("hypothesis", "MPL-2.0"), ("datasets", "Apache-2.0")],
)
def test_the_licence_files_of_installed_distributions_are_recognised(name: str, expected: str) -> None:
    files = [file for file in metadata.files(name) or [] if ".dist-info" in str(file)]
    texts = [file.read_text() for file in files if licences.is_licence_file(file.name)]
    assert texts and licences.recognise_all(texts) == expected
