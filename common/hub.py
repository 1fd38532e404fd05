"""Models of the Hugging Face hub by address: `hf://ORG/NAME`, or `hf://ORG/NAME@REVISION`."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from common.errors import UserError

PREFIX = "hf://"
_ADDRESS = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^@\s]+))?")

# What is read here of a model, and nothing else: no second copy of the weights in another format.
_TOKENIZER = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "encoder.json",
    "vocab.bpe",
)
_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_MODEL = (*_TOKENIZER, _WHOLE, _INDEX, "model-*.safetensors")
# Older models have nothing else. They are read as tensors alone: code in a pickle never runs (`model/tensor_files.py`).
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")


def is_address(place: str | Path) -> bool:
    """Whether `place` is one of the hub, and no path."""
    return str(place).startswith(PREFIX)


def repository_of(address: str) -> tuple[str, str | None]:
    """ORG/NAME and revision, if it says one, of an address of the hub. Raises UserError when it is none."""
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        raise UserError(
            f"{address!r} is no address of a model: write hf://ORG/NAME or hf://ORG/NAME@REVISION, such as "
            "hf://openai-community/gpt2"
        )
    return parts["repository"], parts["revision"]


def local_tokenizer(place: str | Path) -> Path:
    """`place` itself if it is a path; of an address of the hub the directory that its tokenizer is downloaded to.

    Raises:
        UserError: it is no address, or nothing can be had from there; the message says why.
    """
    return _snapshot(str(place), _TOKENIZER) if is_address(place) else Path(place)


def local_model(place: str | Path) -> Path:
    """As `local_tokenizer`, with the weights: safetensors, or where there are none, pickled tensors.

    Raises UserError also where there are neither.
    """
    if not is_address(place):
        return Path(place)
    directory = _snapshot(str(place), _MODEL)
    if _has_one(directory, _WHOLE, _INDEX):
        return directory
    directory = _snapshot(str(place), (*_TOKENIZER, *_PICKLED))
    if not _has_one(directory, *_PICKLED[:2]):
        raise UserError(
            f"{place} has neither {_WHOLE} nor {_PICKLED[0]} (looked in {directory}): they are in another format, or "
            "the download is unfinished; run this again with a network, or convert them with save_pretrained of "
            "transformers and name that directory"
        )
    return directory


def _has_one(directory: Path, *names: str) -> bool:
    return any((directory / name).is_file() for name in names)


@cache  # a branch may move, but one process sees one state of it
def _snapshot(address: str, files: tuple[str, ...]) -> Path:
    repository, revision = repository_of(address)
    hub = _library()
    constants, errors = hub.constants, hub.errors
    if os.environ.get("LOCAL_RANK", "0") == "0":
        origin = "its own cache, offline" if constants.HF_HUB_OFFLINE else constants.ENDPOINT
        print(f"{address}: from {origin}, in {constants.HF_HUB_CACHE}", file=sys.stderr, flush=True)
    wanted = {"repo_id": repository, "revision": revision, "allow_patterns": list(files)}
    try:
        try:
            return Path(hub.snapshot_download(**wanted))
        except errors.HTTPError as error:
            # With no network at all the library looks into its cache by itself, but not behind a proxy that refuses.
            if not isinstance(error, errors.HfHubHTTPError):
                with suppress(errors.LocalEntryNotFoundError):
                    return Path(hub.snapshot_download(**wanted, local_files_only=True))
            raise
    except Exception as error:  # of many kinds, and not the same in all versions
        raise UserError(_explain(error, address, repository, hub)) from error


def _library() -> Any:
    """Raises UserError when it is not installed."""
    try:
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise UserError("models of the hub need a package: pip install -c constraints.txt -e '.[convert]'") from error
    return huggingface_hub


def _explain(error: Exception, address: str, repository: str, hub: Any) -> str:
    """What is wrong, and what to do about it."""
    constants, errors = hub.constants, hub.errors
    page = f"{constants.ENDPOINT}/{repository}"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{address} is gated: accept its licence at {page}, then log in with `hf auth login`, or set HF_TOKEN to a "
            "token that may read gated repositories"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no model at {page}, or it is private: check the name, or log in with `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{address}: there is no such branch, tag or commit; {page}/commits/main lists those there are"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"{address} is not in the cache ({constants.HF_HUB_CACHE}), or not all of it, and "
            + (
                "HF_HUB_OFFLINE forbids to fetch it: unset that"
                if constants.HF_HUB_OFFLINE
                else f"{constants.ENDPOINT} did not answer ({_reason(error)}): check the network"
            )
            + f", or copy the cache of a machine that has a network (`hf download {repository}` there)"
        )
    return f"{address} could not be fetched: {_reason(error)}"


def _reason(error: BaseException) -> str:
    """In one line what went wrong at first: the library wraps errors in advice of its own."""
    first = error.__cause__ if isinstance(error.__cause__, Exception) else error
    return " ".join(f"{type(first).__name__}: {first}".split())[:300]
