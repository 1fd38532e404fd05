"""Source code and documentation of Git repositories, each at one revision.

Git's own commands do the work. A revision is fetched once, without its history, into a bare repository below the
downloads, and files are read out of that: nothing is checked out, so no filter, hook or submodule plays a part.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from common.errors import UserError
from common.files import atomic_directory, only_process_in, read_json, write_json
from data_pipeline.config import CollectionConfig
from data_pipeline.documents import Document, Quarantined, stable_hash
from data_pipeline.sources import licences
from data_pipeline.sources.config import GitRepositories
from data_pipeline.sources.source_tree import Tree, holds_licence, in_parts, kind_of, record

_PATIENCE = 3600  # seconds
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_FILE_MODES = (b"100644", b"100755", b"100664")  # symbolic links and submodules have others
_SETTINGS = {
    "core.hooksPath": os.devnull,
    "gc.auto": "0",
    "maintenance.auto": "false",
    "fetch.unpackLimit": "1",  # one pack, however few the files
    "http.lowSpeedLimit": "1000",  # bytes a second
    "http.lowSpeedTime": "60",  # seconds
}
# Nobody is there to answer a question for a password, and a remote helper could be any program.
_ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "true",
    "SSH_ASKPASS_REQUIRE": "never",
    "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",
}
# Set inside a hook of another repository, where they would lead Git to that one.
_FOREIGN = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES")


class Blob(NamedTuple):
    """A file of a commit. `licence` is that of the nearest licence file."""

    path: str
    object_id: str
    size: int  # bytes
    licence: str = licences.UNKNOWN


class _GitError(Exception):
    """A command of Git failed; the message is its last line."""


def plan(source: GitRepositories, config: CollectionConfig, downloads: Path) -> list[tuple[tuple[Any, ...], str]]:
    """Fetch what is not there yet, and list the chosen files in parts of about `shard_bytes`.

    Raises:
        UserError: Git is missing, an entry names no repository and revision, one is out of reach, or there is no file
            to read.
    """
    parts: list[tuple[tuple[Any, ...], str]] = []
    fetched: dict[tuple[str, str], Path] = {}
    for entry in source.repositories:
        url, revision = split_revision(entry)
        directory = downloads / "repositories"
        commit = resolve(url, revision, directory)
        fetched[url, commit] = fetch(url, commit, directory)
    for (url, commit), copy in fetched.items():
        tree = Tree(group=url, revision=commit, origin=f"{url}@{commit}")
        for number, part in enumerate(in_parts(_chosen(copy, commit, source, config), config.shard_bytes)):
            blobs = [blob for blob, _ in part]
            if blobs:
                parts.append(((tree, str(copy), *blobs), f"{tree.origin} {number}"))
    if not parts:
        kinds = f" with the suffixes {', '.join(source.suffixes)}" if source.suffixes else ""
        raise UserError(f"source {source.name!r}: its repositories have no code or documentation files{kinds}")
    return parts


def read(
    source: GitRepositories, number: int, items: tuple[Any, ...], config: CollectionConfig
) -> Iterator[Document | Quarantined]:
    """One document a file; a file that is not UTF-8 is set aside, for a part of a program is not a program."""
    tree, copy, *blobs = items
    small = [blob for blob in blobs if blob.size <= config.max_record_bytes]
    contents = _contents(Path(copy), small)
    for blob in blobs:
        if blob.size > config.max_record_bytes:
            yield Quarantined(number, f"{tree.origin}/{blob.path}", "whole file", "too_large")
        else:
            yield record(source, number, tree, blob.path, next(contents), blob.licence)


def split_revision(entry: str) -> tuple[str, str]:
    """`URL@revision` in its two parts.

    Raises:
        UserError: one of them is missing, or the address holds a password.
    """
    url, _, revision = entry.rpartition("@")
    without_path = "://" in url and "/" not in url.partition("://")[2]
    if not url or without_path or not re.fullmatch(r"[^-\s~^:?*\[\\][^\s~^:?*\[\\]*", revision):
        raise UserError(
            f"{entry!r} does not name a repository and a revision; write URL@revision, such as "
            "https://example.org/project.git@v1.0"
        )
    if re.match(r"https?://[^/]*@|\w+://[^/@]*:[^/]*@", url):
        raise UserError(
            f"a repository address at {url.rpartition('@')[2]} holds a user name or password, which the manifest would "
            "publish; leave it out and let a credential helper of Git give it"
        )
    return url, revision


def resolve(url: str, revision: str, directory: Path) -> str:
    """The commit that `revision` names. A tag or branch is looked up once; the answer is kept in `directory`.

    So a run that goes on, or is repeated without a network, reads the same commit, whatever has moved since.

    Raises:
        UserError: the repository is out of reach or has no such revision.
    """
    if _COMMIT.fullmatch(revision.lower()):
        return revision.lower()
    answers = directory / f"{_short_name(url)}-{stable_hash(url):016x}.json"
    known: dict[str, str] = read_json(answers) if answers.is_file() else {}
    if revision not in known:
        known[revision] = _look_up(url, revision)
        write_json(answers, known)
    print(f"{url}: {revision} is commit {known[revision]}, until {answers} is deleted", flush=True)
    return known[revision]


def fetch(url: str, commit: str, directory: Path) -> Path:
    """The bare repository in `directory` that holds `commit`, fetched when it is not there yet: whole, or not at all.

    Git checks the sha of every object that it receives, and that none is missing.

    Raises:
        UserError: the commit could not be fetched.
    """
    path = directory / f"{_short_name(url)}-{commit}.git"
    if path.is_dir():
        return path
    with only_process_in(directory), atomic_directory(path) as copy:
        object_format = "sha256" if len(commit) == 64 else "sha1"
        options = ["--bare", "--quiet", "--template=", "--initial-branch=main", f"--object-format={object_format}"]
        shallow = ["--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules"]
        try:
            _git("init", *options, str(copy))
            _git("fetch", *shallow, "--", url, f"{commit}:refs/heads/main", copy=copy)
        except _GitError as error:
            raise UserError(
                f"could not fetch commit {commit} of {url}: {error}. Check the address; where there is no network, "
                "write the path of a local copy instead of it"
            ) from error
    return path


def _look_up(url: str, revision: str) -> str:
    places = ("refs/tags/{}^{{}}", "refs/tags/{}", "refs/heads/{}", "{}^{{}}", "{}")  # the last for refs/... and HEAD
    names = [place.format(revision) for place in places]
    try:
        lines = _git("ls-remote", "--", url, *names).decode().splitlines()
    except _GitError as error:
        raise UserError(
            f"could not reach {url}: {error}. Check the address; where there is no network, write the path of a local "
            "copy instead of it"
        ) from error
    commits = {name: commit for commit, _, name in (line.partition("\t") for line in lines)}
    for name in names:
        if name in commits:
            return commits[name]
    raise UserError(f"{url} has no branch or tag {revision!r}; name one, or a commit with all its digits")


def _chosen(copy: Path, commit: str, source: GitRepositories, config: CollectionConfig) -> Iterator[tuple[Blob, int]]:
    """The files of `commit` to read, in Git's order, each with its licence and its size in bytes."""
    files = _files(copy, commit)
    texts = [blob for blob in files if holds_licence(blob.path) and blob.size <= config.max_record_bytes]
    by_directory: dict[str, list[str]] = {}
    for blob, content in zip(texts, _contents(copy, texts), strict=True):
        by_directory.setdefault(str(PurePosixPath(blob.path).parent), []).append(content.decode("utf-8", "replace"))
    found = {directory: licences.recognise_all(texts) for directory, texts in by_directory.items()}
    for blob in files:
        if kind_of(blob.path, source.suffixes):
            licence = licences.nearest(PurePosixPath(blob.path), found)
            yield blob._replace(licence=licence), min(blob.size, config.max_record_bytes)


def _files(copy: Path, commit: str) -> list[Blob]:
    """All plain files of `commit`. A name that is not UTF-8 is given with its odd bytes written as `\\xff`."""
    try:
        listing = _git("ls-tree", "-r", "-z", "-l", commit, copy=copy)
    except _GitError as error:
        raise _damaged(copy, str(error)) from error
    blobs = []
    for entry in listing.split(b"\0")[:-1]:
        fields, _, path = entry.partition(b"\t")
        mode, _, object_id, size = fields.split()
        if mode in _FILE_MODES:
            blobs.append(Blob(path.decode("utf-8", "backslashreplace"), object_id.decode(), int(size)))
    return blobs


def _contents(copy: Path, blobs: Iterable[Blob]) -> Iterator[bytes]:
    """The content of each blob, checked against its object id; one at a time is in memory.

    Raises:
        UserError: one is missing or damaged.
    """
    with subprocess.Popen(
        _command("cat-file", "--batch", copy=copy),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_environment(),
    ) as process:
        assert process.stdin and process.stdout
        for blob in blobs:
            try:
                os.write(process.stdin.fileno(), blob.object_id.encode() + b"\n")
            except OSError as error:
                raise _damaged(copy, "git cat-file ended") from error
            if process.stdout.readline().split() != [blob.object_id.encode(), b"blob", b"%d" % blob.size]:
                raise _damaged(copy, f"{blob.path} is missing")
            content = process.stdout.read(blob.size + 1)[:-1]
            digest = hashlib.sha256() if len(blob.object_id) == 64 else hashlib.sha1()
            digest.update(b"blob %d\0" % blob.size + content)
            if digest.hexdigest() != blob.object_id:
                raise _damaged(copy, f"{blob.path} is not what it was")
            yield content


def _git(*arguments: str, copy: Path | None = None) -> bytes:
    """What a command of Git prints.

    Raises:
        UserError: Git is not installed.
        _GitError: it failed or took too long.
    """
    try:
        result = subprocess.run(
            _command(*arguments, copy=copy),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=_environment(),
            timeout=_PATIENCE,
            check=False,
            start_new_session=True,  # without a terminal, neither Git nor ssh can ask for a password
        )
    except FileNotFoundError as error:
        raise UserError("a GitRepositories source needs git, which is not installed; install it first") from error
    except subprocess.TimeoutExpired as error:
        raise _GitError(f"no answer within {_PATIENCE} seconds") from error
    if result.returncode:
        lines = result.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
        raise _GitError(next((line for line in lines if line.startswith(("fatal:", "error:"))), lines[-1]))
    return result.stdout


def _command(*arguments: str, copy: Path | None) -> list[str]:
    settings = [word for key, value in _SETTINGS.items() for word in ("-c", f"{key}={value}")]
    return ["git", *settings, *([] if copy is None else [f"--git-dir={copy}"]), *arguments]


def _environment() -> dict[str, str]:
    return {**{key: value for key, value in os.environ.items() if key not in _FOREIGN}, **_ENVIRONMENT}


def _short_name(url: str) -> str:
    """The last word of an address, for the names of files."""
    return re.sub(r"[^\w.-]+", "-", url.rstrip("/").removesuffix(".git").rpartition("/")[2]).strip("-.") or "repository"


def _damaged(copy: Path, what: str) -> UserError:
    return UserError(f"the copy of a repository in {copy} is damaged ({what}); delete it and run the command again")
