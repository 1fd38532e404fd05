"""The compiled `step.cpp`: built once a machine, with the C++ compiler that is there, and kept in the user's cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from common.errors import UserError

SOURCES = Path(__file__).parent
FLAGS = ("-O3", "-march=native", "-std=gnu++17", "-fno-math-errno", "-shared", "-fPIC", "-fopenmp")
SECONDS = 120  # how long the compiler may take; it takes three

KINDS = ("fp32", "bf16", "int8", "int4")  # the order of `Kind` in products.h


class Matrix(ctypes.Structure):
    """A weight (out, in), as products.h reads it."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("out", ctypes.c_int64),
        ("inside", ctypes.c_int64),
        ("kind", ctypes.c_int64),
    )


def available() -> bool:
    """Whether there is a library; the first call may build it, and says in one line when it cannot."""
    return library() is not None


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library, built if need be; None where that is impossible."""
    try:
        loaded = ctypes.CDLL(str(build()))
    except (UserError, OSError, RuntimeError) as error:  # the last where there is no home directory
        print(f"native kernels: none, {error}; PyTorch's own take their place", file=sys.stderr)
        return None
    loaded.multiply.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64]
    loaded.step.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return loaded


def is_built() -> bool:
    """Whether `library` would find it ready."""
    command = compile_command()
    try:
        return command is not None and built_path(command).exists()
    except RuntimeError:  # there is no home directory
        return False


def build() -> Path:
    """The library's file, compiled now unless that has been done.

    Raises UserError when there is no compiler, or it fails.
    """
    command = compile_command()
    if command is None:
        raise UserError("there is no C++ compiler here (g++ or clang++; or name one in CXX)")
    path = built_path(command)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    place = path.parent.stat()
    if hasattr(os, "getuid") and (place.st_uid != os.getuid() or place.st_mode & 0o022):
        raise UserError(
            f"others may write into {path.parent}, so what lies there is not run; name another place in XDG_CACHE_HOME"
        )
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:  # processes that build at a time do not meet
        made = Path(scratch) / path.name
        try:
            done = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True, timeout=SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"{command[0]} does not compile ({error})") from error
        if done.returncode:
            reason = next((line for line in done.stderr.splitlines() if "error" in line), "no reason given")
            raise UserError(f"{command[0]} does not compile {SOURCES / 'step.cpp'} ({reason.strip()})")
        made.replace(path)
    return path


def compile_command() -> list[str] | None:
    """All but where the result goes; None without a compiler."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    compiler = next(filter(None, map(shutil.which, names)), None)
    return None if compiler is None else [compiler, *FLAGS, str(SOURCES / "step.cpp")]


def built_path(command: list[str]) -> Path:
    """Where the result of a command lies: under a name that the source, the command and this CPU make."""
    digest = hashlib.sha256("\0".join([*command, *_cpu()]).encode())
    for source in sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp")]):
        digest.update(source.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "mini-gpt" / f"step-{digest.hexdigest()[:20]}.so"


def _cpu() -> list[str]:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return [
        platform.machine(),
        platform.processor(),
        *sorted({line for line in lines if line.startswith(("flags", "Features", "CPU part"))}),
    ]


def matrix(kind: str, weights: Tensor, shape: torch.Size, scales: Tensor | None, bias: Tensor | None) -> Matrix:
    """Points at tensors on the CPU, which must be kept as long as it is used."""
    assert bias is None or bias.dtype == torch.float32
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in (weights, scales, bias)]
    return Matrix(*pointers, *shape, KINDS.index(kind))


def multiply(weight: Matrix, x: Tensor) -> Tensor:
    """`x` (..., in) fp32 times the transpose of `weight`, plus its bias: (..., out) fp32."""
    loaded, x = library(), x.contiguous()
    assert loaded is not None and x.dtype == torch.float32 and x.shape[-1] == weight.inside
    out = x.new_empty(*x.shape[:-1], weight.out)
    tokens = x.numel() // weight.inside
    loaded.multiply(ctypes.addressof(weight), x.data_ptr(), tokens, out.data_ptr(), torch.get_num_threads())
    return out
