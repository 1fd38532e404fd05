"""Models of the Hugging Face hub: from a cache as its library lays it out, and from a server in its place."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from test_data_helpers import small_config
from test_evaluation_stages import CONFIG, without_weights
from test_training_start import STILL, hf_gpt2
from tiny import make_project, run_train
from tuning import write_questions

import common.hub
from common.errors import UserError
from common.files import read_json
from common.hub import local_model, local_tokenizer
from data_pipeline.config import TokenizerConfig
from data_pipeline.pipeline import curate
from data_pipeline.shards import Dataset
from data_pipeline.tokenizer_import import pack
from evaluation.stage_parts import identity_of
from model.convert.__main__ import main as convert
from model.convert.opening import open_source

COMMIT, OTHER = "a" * 40, "b" * 40
ADDRESS = "hf://mini/tiny-gpt2"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project, and a GPT-2 of transformers with the tokenizer of its data."""
    project = make_project(tmp_path_factory.mktemp("project"))
    hf_gpt2(project / "theirs", project / "data" / "tiny" / "tokenizer.model")
    return project


@pytest.fixture
def theirs(template: Path) -> Path:
    return template / "theirs"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    common.hub._snapshot.cache_clear()
    yield tmp_path / "cache"
    common.hub._snapshot.cache_clear()


def lay_out(cache: Path, files: Path, commit: str = COMMIT, branch: str = "main") -> Path:
    """Put a model into a cache as the library does: contents by their hash, and links to them by their name."""
    root = cache / "models--mini--tiny-gpt2"
    for folder in ("refs", "blobs", f"snapshots/{commit}"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "refs" / branch).write_text(commit)
    for file in files.iterdir():
        blob = root / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (root / "snapshots" / commit / file.name).symlink_to(f"../../blobs/{blob.name}")
    return root / "snapshots" / commit


def test_a_path_stays_a_path() -> None:
    assert local_model("runs/x") == local_tokenizer(Path("runs/x")) == Path("runs/x")


def test_training_begins_with_a_model_of_the_hub(template: Path, tmp_path: Path) -> None:
    """As people run it, with the library's own settings; later the run needs the model no more."""
    project = shutil.copytree(template, tmp_path / "project")
    snapshot = lay_out(tmp_path / "home" / "hub", project / "theirs")
    settings = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    result = run_train(project, "--start-from", ADDRESS, *STILL, **settings)
    said = f"{ADDRESS}: from its own cache, offline, in {tmp_path / 'home' / 'hub'}"
    assert result.stderr.count(said) == 1
    expected = dict(open_source(snapshot).tensors())
    found = load_file(project / "runs" / "tiny" / "checkpoints" / "step_00000002" / "model.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert read_json(project / "runs" / "tiny" / "config.json")["start_from"] == ADDRESS
    shutil.rmtree(tmp_path / "home")
    run_train(project, "--start-from", ADDRESS, *STILL[:-1], "3")


def test_stages_from_a_model_of_the_hub_are_measured(
    template: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they began with too, and adapters of it; pickled weights are weights as well."""
    project = shutil.copytree(template, tmp_path / "project")
    (project / "theirs" / "model.safetensors").unlink()
    tensors = load_file(template / "theirs" / "model.safetensors")
    torch.save(tensors, project / "theirs" / "pytorch_model.bin")
    snapshot = lay_out(cache, project / "theirs")
    for number in (1, 2):
        write_questions(project / f"part_{number}.txt", shift=number)
    (project / "poems.py").write_text(CONFIG, encoding="utf-8")
    with without_weights():
        run_train(project, "--start-from", ADDRESS, "--budget.steps", "1", config="poems.py")
    found = read_json(project / "runs" / "poems" / "stages.json")
    assert [len(row) for row in found["losses"]] == [2, 2, 2] and all(all(row) for row in found["losses"])
    monkeypatch.chdir(project)
    before = identity_of(ADDRESS), identity_of("poems_stage_2")
    assert before[0] == identity_of(str(snapshot))
    torch.save({**tensors, "more": torch.zeros(1)}, snapshot / "pytorch_model.bin")
    assert identity_of(ADDRESS) != before[0] and identity_of("poems_stage_2") != before[1]


def test_it_becomes_a_run(cache: Path, theirs: Path, tmp_path: Path) -> None:
    lay_out(cache, theirs)
    convert(["from-hf", ADDRESS, str(tmp_path / "run")])
    assert read_json(tmp_path / "run" / "config.json")["converted_from"] == f"{ADDRESS}@{COMMIT}"
    assert (tmp_path / "run" / "tokenizer.model").read_bytes() == pack(theirs) == pack(ADDRESS)


def test_data_are_made_with_its_tokenizer(cache: Path, theirs: Path, corpus: list[Path], tmp_path: Path) -> None:
    lay_out(cache, theirs)
    config = small_config(*corpus, tokenizer=TokenizerConfig(kind="existing", path=ADDRESS))
    curate(config, tmp_path / "data", workers=1, executor="serial")
    assert Dataset(tmp_path / "data").tokenizer_path.read_bytes() == pack(theirs)


def test_a_revision_is_a_branch_or_a_commit(cache: Path, theirs: Path) -> None:
    first, second = lay_out(cache, theirs), lay_out(cache, theirs, OTHER, branch="spanish")
    assert local_model(ADDRESS) == local_model(f"{ADDRESS}@{COMMIT}") == first
    assert local_model(f"{ADDRESS}@spanish") == local_model(f"{ADDRESS}@{OTHER}") == second


@pytest.mark.parametrize("address", ["hf://gpt2", "hf://a/b/c", "hf://", "hf://a/b@", "hf://a b/c"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UserError, match="is no address of a model: write hf://ORG/NAME"):
        open_source(address)


def test_a_name_that_the_hub_does_not_allow(cache: Path) -> None:
    with pytest.raises(UserError, match=r"hf://a/b\.\.c could not be fetched: HFValidationError"):
        local_model("hf://a/b..c")


def test_what_is_not_in_the_cache(cache: Path, theirs: Path) -> None:
    with pytest.raises(UserError, match=r"is not in the cache .* HF_HUB_OFFLINE forbids to fetch it: unset that"):
        local_model(ADDRESS)
    snapshot = lay_out(cache, theirs)
    with pytest.raises(UserError, match="is not in the cache"):
        local_model(f"{ADDRESS}@v2")
    (snapshot / "model.safetensors").unlink()
    assert local_tokenizer(ADDRESS) == snapshot
    with pytest.raises(UserError, match=r"has neither model\.safetensors nor pytorch_model\.bin"):
        local_model(ADDRESS)


class Opener:
    """What a pickle can hold besides tensors: here something that makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_a_pickle_of_more_than_tensors_is_not_run(cache: Path, theirs: Path, tmp_path: Path) -> None:
    snapshot = lay_out(cache, theirs)
    (snapshot / "model.safetensors").unlink()
    torch.save({"wte.weight": Opener(tmp_path / "run")}, snapshot / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin is refused: .*could run code"):
        open_source(ADDRESS)
    assert not (tmp_path / "run").exists()


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as its own library needs to download from it, or to be refused."""

    files: ClassVar[dict[str, bytes]]
    asked: ClassVar[list[str]]
    refusals: ClassVar = {  # by the part of an address that asks for it: status and code, as the hub has them
        "/private/": (401, "RepoNotFound"),
        "/missing/": (404, "RepoNotFound"),
        "/gated/": (403, "GatedRepo"),
        "/broken/": (500, ""),
        "/revision/v9": (404, "RevisionNotFound"),
    }

    def do_CONNECT(self) -> None:
        """As a proxy."""
        self.answer(b"", 403)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        # Anyone may see what there is in a gated repository, but not download it.
        listing = path.startswith("/api/")
        refused = next((answer for part, answer in self.refusals.items() if part in path), None)
        if refused is not None and not ("/gated/" in path and listing):
            self.answer(b"", refused[0], {"X-Error-Code": refused[1]})
        elif listing and "/tree/" in path:
            tree = [{"type": "file", "path": name, "size": len(data), "oid": name} for name, data in self.files.items()]
            self.answer(json.dumps(tree).encode())
        elif listing:
            self.answer(json.dumps({"id": "mini/tiny-gpt2", "sha": COMMIT, "siblings": []}).encode())
        else:
            content = self.files[path.split(f"/resolve/{COMMIT}/")[1]]
            etag = hashlib.sha256(content).hexdigest()
            self.answer(content, headers={"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def hub(cache: Path, theirs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """A server of this machine in place of the hub."""
    Hub.files = {file.name: file.read_bytes() for file in theirs.iterdir()}
    Hub.files |= {"pytorch_model.bin": b"a pickle", "onnx/model.onnx": b"", "onnx/config.json": b"{}"}
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    yield server
    server.shutdown()
    server.server_close()


def test_only_what_is_read_is_downloaded(hub: ThreadingHTTPServer, theirs: Path, cache: Path) -> None:
    tokenizer = local_tokenizer(ADDRESS)
    names = {"config.json", "generation_config.json", "tokenizer.model"}
    assert {file.name for file in tokenizer.iterdir()} == names and pack(tokenizer) == pack(theirs)
    model = local_model(ADDRESS)
    assert model == tokenizer == cache / "models--mini--tiny-gpt2" / "snapshots" / COMMIT
    assert {file.name for file in model.iterdir()} == {*names, "model.safetensors"}
    count = len(Hub.asked)
    assert local_model(ADDRESS) == model and len(Hub.asked) == count  # one process asks once


def test_without_a_connection_the_cache_serves(hub: ThreadingHTTPServer, cache: Path, theirs: Path) -> None:
    hub.shutdown()
    hub.server_close()
    with pytest.raises(UserError, match=r"not in the cache .* did not answer \(ConnectError: .*check the network"):
        local_model(ADDRESS)
    snapshot = lay_out(cache, theirs)
    assert local_model(ADDRESS) == snapshot


def test_behind_a_proxy_that_refuses_the_cache_serves(
    hub: ThreadingHTTPServer, cache: Path, theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", constants.ENDPOINT)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    huggingface_hub.close_session()  # a new one reads the environment
    with pytest.raises(UserError, match="could not be fetched: ProxyError: 403"):
        local_model(ADDRESS)
    snapshot = lay_out(cache, theirs)
    assert local_model(ADDRESS) == snapshot
    huggingface_hub.close_session()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://missing/m", "there is no model at http://127.0.0.1:[0-9]*/missing/m, or it is private: .*hf auth login"),
        ("hf://private/m", "there is no model at .*/private/m, or it is private"),
        ("hf://gated/m", "hf://gated/m is gated: accept its licence at http.*/gated/m, then .*hf auth login"),
        (f"{ADDRESS}@v9", "no such branch, tag or commit; http.*/mini/tiny-gpt2/commits/main lists"),
        ("hf://broken/m", r"did not answer \(HfHubHTTPError: .*500"),
    ],
)
def test_what_the_hub_refuses(hub: ThreadingHTTPServer, address: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        local_model(address)


def test_a_repository_without_weights(hub: ThreadingHTTPServer) -> None:
    Hub.files["adapter_model.safetensors"] = Hub.files.pop("model.safetensors")
    del Hub.files["pytorch_model.bin"]
    with pytest.raises(UserError, match=r"has neither model.safetensors nor pytorch_model.bin"):
        local_model(ADDRESS)
    assert not [path for path in Hub.asked if path.endswith("adapter_model.safetensors")]


def test_an_older_model_is_pickled(hub: ThreadingHTTPServer, theirs: Path, tmp_path: Path) -> None:
    del Hub.files["model.safetensors"]
    torch.save(load_file(theirs / "model.safetensors"), tmp_path / "pickled")
    Hub.files["pytorch_model.bin"] = (tmp_path / "pickled").read_bytes()
    found, expected = dict(open_source(ADDRESS).tensors()), dict(open_source(theirs).tensors())
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_weights_in_several_files(hub: ThreadingHTTPServer, theirs: Path, tmp_path: Path) -> None:
    tensors = load_file(theirs / "model.safetensors")
    del Hub.files["model.safetensors"]
    places = {}
    for number, name in enumerate(sorted(tensors)):
        places[name] = f"model-0000{number % 2 + 1}-of-00002.safetensors"
    for place in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == place}, tmp_path / place)
        Hub.files[place] = (tmp_path / place).read_bytes()
    Hub.files["model.safetensors.index.json"] = json.dumps({"weight_map": places}).encode()
    found, expected = dict(open_source(ADDRESS).tensors()), dict(open_source(theirs).tensors())
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
