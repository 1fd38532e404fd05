"""Tensor files read and written one tensor at a time, so that memory holds one of them and not the model."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common.errors import UserError
from common.files import read_json

DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
NAMES = {name: dtype for dtype, name in DTYPES.items()}
# What the weights of a Hugging Face directory are called; where there are several, the first.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


class TensorFiles:
    """Named tensors that lie in files: safetensors, or pickled ones."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        """`files`: in which file every tensor lies."""
        self.files = files
        self._pickled: tuple[Path, dict[str, Tensor]] | None = None  # the one pickled file that is open

    @classmethod
    def of_file(cls, path: Path) -> TensorFiles:
        """All tensors of one file. Raises UserError when it is damaged."""
        files = cls({})
        files.files = dict.fromkeys(files._names(path), path)
        return files

    @classmethod
    def of_directory(cls, directory: Path) -> TensorFiles:
        """The weights of a Hugging Face directory, in one file or in several with an index.

        Raises:
            UserError: there are none, one is damaged, or the index and the files disagree.
        """
        found = [directory / name for name in WEIGHTS if (directory / name).is_file()]
        if not found:
            raise UserError(f"{directory} holds no weights: none of {', '.join(WEIGHTS)} is there")
        return cls._indexed(found[0]) if found[0].suffix == ".json" else cls.of_file(found[0])

    def layout(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype of one tensor. Raises UserError for a dtype that weights here cannot have."""
        path = self.files[name]
        if path.suffix == ".bin":
            tensor = self._load(path)[name]
            shape, dtype = tuple(tensor.shape), tensor.dtype
        else:
            with _opened(path) as file:
                part = file.get_slice(name)
                shape, stored = tuple(part.get_shape()), part.get_dtype()
            if stored not in NAMES:
                raise UserError(f"{path}: {name} is stored as {stored}; weights must be F32, F16 or BF16")
            dtype = NAMES[stored]
        if dtype not in DTYPES:
            raise UserError(f"{path}: {name} is stored as {dtype}; weights must be float32, float16 or bfloat16")
        return shape, dtype

    def read(self, name: str) -> Tensor:
        """One tensor, a copy of its own."""
        path = self.files[name]
        if path.suffix == ".bin":
            return self._load(path)[name].clone()
        with _opened(path) as file:  # opened again for each: what it has mapped is given back when it closes
            return file.get_tensor(name)

    def _names(self, path: Path) -> list[str]:
        if path.suffix == ".bin":
            return list(self._load(path))
        with _opened(path) as file:
            return list(file.keys())

    def _load(self, path: Path) -> dict[str, Tensor]:
        if self._pickled is None or self._pickled[0] != path:
            self._pickled = None  # let go of the other file first
            self._pickled = path, _unpickled(path)
        return self._pickled[1]

    @classmethod
    def _indexed(cls, index: Path) -> TensorFiles:
        try:
            places = dict(read_json(index)["weight_map"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{index} has no object 'weight_map' of tensor and file names") from error
        files = cls({})
        for place in sorted(set(map(str, places.values()))):
            path = index.parent / place
            if Path(place).name != place or place == "..":
                raise UserError(f"{index} points outside its directory: {place!r}")
            if path.suffix not in (".safetensors", ".bin") or not path.is_file():
                raise UserError(f"{index} names {place!r}, which is not there, or no file of tensors")
        for place in sorted(set(map(str, places.values()))):
            path = index.parent / place
            listed, held = {name for name in places if places[name] == place}, set(files._names(path))
            if listed - held:
                raise UserError(f"{path} lacks {some(listed - held)}, which {index.name} says that it holds")
            if held - listed:
                raise UserError(f"{path} holds {some(held - listed)}, of which {index.name} does not know")
        files.files = {name: index.parent / str(place) for name, place in places.items()}
        return files


class TensorsInMemory(TensorFiles):
    """Named tensors that were worked out, and lie in no file."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(dict.fromkeys(tensors, Path()))
        self._tensors = tensors

    def layout(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        return tuple(self._tensors[name].shape), self._tensors[name].dtype

    def read(self, name: str) -> Tensor:
        return self._tensors[name]


def read_metadata(path: Path) -> dict[str, str]:
    """What is written in a safetensors file beside its tensors. Raises UserError when the file is damaged."""
    with _opened(path) as file:
        return dict(file.metadata() or {})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or damaged: {error}; fetch it again") from error


def _unpickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled file, mapped into memory where its form allows; code in it is never run."""
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # of before torch 1.6, which cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise UserError(
            f"{path} is refused: it is damaged, or a pickle of more than tensors, which could run code ({reason}); "
            "use a safetensors file of the same weights"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, AttributeError, TypeError, struct.error) as error:
        raise UserError(f"{path} is truncated or damaged: {error}; fetch it again") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} is not a plain dictionary of tensors")
    return content


class SafetensorsWriter:
    """Writes a safetensors file tensor by tensor; the library can only write all of them at once."""

    def __init__(self, file: IO[bytes], layouts: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
        """`layouts`: shape and dtype of every tensor, in the order in which they will be written."""
        self._file, self._waiting = file, list(layouts)
        self._layouts = layouts
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, (shape, dtype) in layouts.items():
            stop = offset + byte_size(shape, dtype)
            header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [offset, stop]}
            offset = stop
        content = json.dumps(header, separators=(",", ":")).encode()
        content += b" " * (-len(content) % 8)  # so that the tensors begin aligned
        file.write(len(content).to_bytes(8, "little") + content)

    def write(self, name: str, tensor: Tensor) -> None:
        """Append the next tensor."""
        expected = self._waiting.pop(0)
        assert name == expected and (tuple(tensor.shape), tensor.dtype) == self._layouts[name], (name, expected)
        self._file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)

    def finish(self) -> None:
        """Nothing may be missing."""
        assert not self._waiting, self._waiting


def byte_size(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    count = 1
    for size in shape:
        count *= size
    return count * dtype.itemsize


def some(names: Collection[str]) -> str:
    """A few of many names."""
    first = sorted(names)[:4]
    return ", ".join(first) + (f" and {len(names) - len(first)} more" if len(names) > len(first) else "")
