"""A tiny world for the tests of inference and evaluation: tokenizer, curated data and a run with random weights."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import sentencepiece
import torch
from forks import run_forks

from common.cli import to_dict
from common.files import sha256_of, write_json
from data_pipeline.shards import INDEX_DTYPE, token_dtype
from data_pipeline.tokenizer import Tokenizer
from model import Decoder, ModelConfig

ROOT = Path(__file__).parents[1]
VOCAB = 400
SOURCES = ("wikipedia", "python")
HOSTILE = "<script>alert('report')</script> & <b>bold</b>"


@functools.cache
def documents() -> list[tuple[str, str]]:
    """Generated documents as (source, text); characters that it does not hold are byte tokens."""
    rng = random.Random(0)
    words = [
        f"{a}{b}" for a in ("riv", "tow", "mount", "hist", "cent", "popul") for b in ("er", "n", "ain", "ory", "al")
    ]
    found = []
    for number in range(120):
        sentences = [
            " ".join(rng.choices(words, k=rng.randint(3, 9))).capitalize() + "." for _ in range(rng.randint(1, 6))
        ]
        found.append(("wikipedia", f"Näme {number} – 日本 😀\n\n" + " ".join(sentences)))
        body = "\n".join(
            f"    {rng.choice(words)} = {rng.choice(words)}({rng.randint(0, 99)})" for _ in range(rng.randint(1, 5))
        )
        found.append(("python", f"def {rng.choice(words)}_{number}(x):\n{body}\n    return x\n"))
    return found


@functools.cache
def tokenizer_bytes() -> bytes:
    """A BPE model with byte fallback that gives every text back unchanged."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for _, text in documents() for line in text.split("\n")),
        model_writer=model,
        vocab_size=VOCAB,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        character_coverage=0.98,
        bos_id=-1,
        pad_id=-1,
        unk_id=1,
        eos_id=0,
        minloglevel=2,
        num_threads=1,
    )
    return model.getvalue()


def make_tokenizer(directory: Path) -> Tokenizer:
    path = directory / "tokenizer.model"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tokenizer_bytes())
    return Tokenizer(path)


def tiny_config(**changes: Any) -> ModelConfig:
    """The project's own recipe, small, and with output weights that are not zero, so that logits differ."""
    fields: dict[str, Any] = {
        "vocab_size": VOCAB, "context_length": 32, "layers": 2, "width": 32, "heads": 2,
        "zero_init_projections": False, "embedding_std": 0.5,
    }  # fmt: skip
    return ModelConfig(**{**fields, **changes})


def tiny_model(seed: int = 0, **changes: Any) -> Decoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Decoder(tiny_config(**changes)).eval()


def make_data(directory: Path, shards: int = 2) -> Path:
    """Curated data as the contract has it: every tenth document in the validation split."""
    tokenizer = make_tokenizer(directory)
    dtype = token_dtype(VOCAB)
    splits: dict[str, Any] = {}
    by_source: dict[str, Any] = {name: {} for name in SOURCES}
    for split in ("train", "val"):
        chosen = [item for n, item in enumerate(documents()) if (n // 2 % 10 == 0) == (split == "val")]
        entries = []
        for shard in range(shards):
            part = chosen[shard::shards]
            ids = [[*tokenizer.encode(text), tokenizer.eos_id] for _, text in part]
            starts = np.cumsum([0] + [len(one) for one in ids])
            index = np.array(
                [
                    (start, len(one), len(text.encode()), SOURCES.index(source))
                    for start, one, (source, text) in zip(starts, ids, part, strict=False)
                ],
                INDEX_DTYPE,
            )
            name = f"{split}_{shard:05d}"
            np.array([token for one in ids for token in one], dtype).tofile(directory / f"{name}.bin")
            np.save(directory / f"{name}.index.npy", index)
            entries.append({"file": f"{name}.bin", "tokens": int(starts[-1]), "documents": len(part)})
        splits[split] = {
            "shards": entries,
            "documents": len(chosen),
            "tokens": sum(entry["tokens"] for entry in entries),
            "bytes": sum(len(text.encode()) for _, text in chosen),
        }
        for source, counts in by_source.items():
            texts = [text for name, text in chosen if name == source]
            counts[split] = {
                "documents": len(texts),
                "bytes": sum(len(text.encode()) for text in texts),
                "tokens": sum(len(tokenizer.encode(text)) + 1 for text in texts),
            }
    digests = "".join(sha256_of(directory / e["file"]) for split in splits.values() for e in split["shards"])
    write_json(
        directory / "manifest.json",
        {
            "dtype": dtype.str,
            "vocab_size": VOCAB,
            "eos_id": tokenizer.eos_id,
            "tokenizer": {"file": "tokenizer.model", "sha256": tokenizer.sha256},
            "fingerprint": hashlib.sha256(digests.encode()).hexdigest(),
            "sources": [{"name": name, "licence": f"licence of {name}", "splits": by_source[name]} for name in SOURCES],
            "licences": {f"licence of {name}": 120 for name in SOURCES},
            "splits": splits,
            "stages": [{"name": "filter", "documents_in": 250, "documents_out": 240, "dropped": {"too short": 10}}],
        },
    )
    return directory


def make_checkpoint(run: Path, model: Decoder, step: int, val_loss: float | None, fingerprint: str = "") -> Path:
    directory = run / "checkpoints" / f"step_{step:08d}"
    directory.mkdir(parents=True)
    safetensors.torch.save_file(model.state_dict(), directory / "model.safetensors")
    state = {
        "step": step, "tokens": step * 64, "seconds": step * 0.5, "val_loss": val_loss,
        "tokenizer_sha256": hashlib.sha256(tokenizer_bytes()).hexdigest(), "data_fingerprint": fingerprint,
    }  # fmt: skip
    write_json(directory / "state.json", state)
    files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in directory.iterdir()}
    write_json(directory / "manifest.json", {"files": files})
    return directory


def make_run(directory: Path, data: str = "data/tiny", fingerprint: str = "", **changes: Any) -> Path:
    """A run with random weights at steps 10 (best) and 20."""
    directory.mkdir(parents=True)
    make_tokenizer(directory)
    config = {
        "name": directory.name, "model": to_dict(tiny_config(**changes)), "data": {"directory": data},
        "seed": 0, "precision": "fp32",
    }  # fmt: skip
    write_json(directory / "config.json", config)
    rows: list[dict[str, Any]] = [
        {"step": s, "tokens": s * 64, "seconds": s * 0.5, "train/loss": 6 - s / 10, "lr": 1e-3, "grad_norm": 1.0,
         "tokens_per_second": 128.0}
        for s in range(1, 21)
    ]  # fmt: skip
    for row in rows[9::10]:
        row.update({"val/loss": row["train/loss"] + 0.1, "val/bits_per_byte": 2.5})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sample = {"step": 10, "tokens": 640, "prompt": "The ", "text": HOSTILE}
    (directory / "samples.jsonl").write_text(json.dumps(sample) + "\n", encoding="utf-8")
    make_checkpoint(directory, tiny_model(1, **changes), 10, 5.1, fingerprint)
    make_checkpoint(directory, tiny_model(2, **changes), 20, 5.2, fingerprint)
    return directory


@dataclass(frozen=True)
class World:
    root: Path
    data: Path
    run: Path


def make_world(root: Path, **changes: Any) -> World:
    """`data/tiny` and `runs/tiny` below `root`."""
    data = make_data(root / "data" / "tiny")
    fingerprint = json.loads((data / "manifest.json").read_text(encoding="utf-8"))["fingerprint"]
    return World(root, data, make_run(root / "runs" / "tiny", fingerprint=fingerprint, **changes))


def command(*arguments: str, cwd: Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python with the repository's packages importable, from another directory, as a user would."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        input=None if text is None else text.encode(),
        capture_output=True,
        timeout=120,
    )
    # Decoded here: text mode would turn a generated carriage return into a newline.
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


DRIVER = """
import contextlib, importlib, io, json, sys
from common.cli import run_command
main, results = importlib.import_module(sys.argv[1]).main, []
lines, text = json.loads(sys.argv[2]), sys.argv[3]
for arguments in lines:
    sys.stdin = io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8")
    sys.argv[1:] = arguments
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.suppress(BaseException):
        try:
            run_command(main)
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code = repr(error)
    for stream in (out, err):
        stream.flush()
    results.append((code, *(stream.buffer.getvalue().decode() for stream in (out, err))))
print(json.dumps(results))
"""


def run_all(module: str, lines: list[list[str]], cwd: Path, text: str = "") -> list[tuple[Any, str, str]]:
    """(exit status, standard output, standard error) of `module.main` for each list of arguments, with `text` on its
    standard input."""
    done = run_forks(("-c", DRIVER, module, json.dumps(lines), text), cwd, dict(os.environ))
    assert done.returncode == 0, done.stderr
    return [tuple(result) for result in json.loads(done.stdout)]
