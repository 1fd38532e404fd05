"""Config files and command lines: a Python file that defines `config`, then typed overrides of any field."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import os
import re
import sys
import time
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro
from pydantic import TypeAdapter, ValidationError

from common.errors import UserError
from common.files import read_json

T = TypeVar("T")


def load_config(path: str | Path, kind: type[T]) -> T:
    """Import the Python file at `path` and return its `config`, with every field's type checked; or read the JSON that
    a run has saved its own in.

    Raises:
        UserError: the file is missing or fails to run, defines no `config` of type `kind`, or has a field with an
            unknown name or a value of the wrong type.
    """
    path = Path(path)
    if not path.is_file():
        beside = [str(other) for other in sorted(path.parent.glob("*.py"))]
        raise UserError(f"config file {path} does not exist{_suggest(str(path), beside)}")
    if path.suffix == ".json":
        return _load_json(path, kind)
    spec = importlib.util.spec_from_file_location(f"config_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"config file {path} is not Python: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path} could not be run: {type(error).__name__}: {error}{_hint(error, kind)}") from error
    config = getattr(module, "config", None)
    if not isinstance(config, kind):
        found = type(config).__name__ if hasattr(module, "config") else "no such name"
        raise UserError(f"{path} must define `config = {kind.__name__}(...)`; found {found}")
    check_types(config, where=f"{path}: config")
    return config


def parse_command(
    command: type[T],
    config_kind: type[Any],
    argv: Sequence[str],
    program: str,
    prepare: Callable[[Any, Sequence[str]], Any] = lambda config, flags: config,
) -> T:
    """Parse `PROGRAM CONFIG [--field value ...]` into `command`.

    `command` is a dataclass whose field `config` holds the tree that the config file defines; its other fields are
    flags of the command itself. `prepare` may change the file's config, given the flags, before these are applied.
    A bad flag or value ends the process with status 2 and names the nearest flag.

    Raises:
        UserError: no config file was named, or `load_config` refused it.
    """
    rest = list(argv)
    default = config_kind()
    if rest and not rest[0].startswith("-"):
        default = prepare(load_config(rest.pop(0), config_kind), rest)
    elif not {"-h", "--help"} & set(rest):
        raise UserError(f"name a config file first: {program} CONFIG [--field value ...]; {program} --help lists them")
    return tyro.cli(
        command,
        args=rest,
        prog=f"{program} CONFIG",
        default=typing.cast(Any, command)(config=default),
        config=(tyro.conf.AvoidSubcommands,),
    )


def override(config: T, flags: Sequence[str], program: str) -> T:
    """`config` with the fields that flags such as `--model.layers 6` name; a bad one ends the process with status 2."""
    return tyro.cli(type(config), args=flags, prog=program, default=config, config=(tyro.conf.AvoidSubcommands,))


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass tree as JSON-ready dictionaries, lists and scalars."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def from_dict(kind: type[T], values: dict[str, Any], where: str) -> T:
    """Build the dataclass `kind` from plain values, such as a saved config.

    Raises:
        UserError: an unknown field (the nearest known one is suggested) or a value of the wrong type.
    """
    _check_names(kind, values, where)
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error)}") from error


def _load_json(path: Path, kind: type[T]) -> T:
    try:
        values = dict(read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"config file {path} is no JSON object: {error}") from error
    return from_dict(kind, values, where=str(path))


def _check_names(kind: type[Any], values: dict[str, Any], where: str) -> None:
    """Raises UserError for a field that `kind`, or a dataclass right inside it, does not have."""
    hints = typing.get_type_hints(kind)
    for key, value in values.items():
        if key not in hints:
            raise UserError(f"{where}: {kind.__name__} has no field {key!r}{_suggest(key, hints)}")
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, dict):
            _check_names(typing.cast(Any, hints[key]), value, f"{where}: {key}")


def run_command(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command's `main` on `argv` (by default the process's own).

    A user error ends it with status 2; a file or connection that fails it, such as a full disk, with status 1.
    """
    try:
        main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            # The first process of a machine says it for all: torchrun ends the others as soon as that one has ended.
            time.sleep(20)
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough. Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # as a shell reports a process that the signal ended
    except OSError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
    sys.exit(0)


def check_types(config: Any, where: str) -> None:
    """Dataclasses do not check their fields; a wrong type in a config file should be caught where it was written."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), f"{where}.{field.name}"
        if dataclasses.is_dataclass(value):
            check_types(value, path)
        elif isinstance(value, tuple) and any(dataclasses.is_dataclass(item) for item in value):
            for number, item in enumerate(value):
                check_types(item, f"{path}[{number}]")
        else:
            try:
                TypeAdapter(hints[field.name]).validate_python(value, strict=True)
            except ValidationError as error:
                raise UserError(f"{path} = {value!r}: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    parts = []
    for item in error.errors():
        field = ".".join(str(part) for part in item["loc"])
        parts.append(f"{field}: {item['msg']}" if field else item["msg"])
    return "; ".join(parts)


def _hint(error: Exception, kind: type[Any]) -> str:
    """`RunConfig(modle=...)` raises a TypeError that quotes the name; say which field was probably meant."""
    quoted = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    return _suggest(quoted.group(1), _all_field_names(kind)) if quoted else ""


def _suggest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _field_names(kind: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _all_field_names(kind: type[Any]) -> set[str]:
    """Names of the fields of `kind` and of every dataclass inside it."""
    names = _field_names(kind)
    for hint in typing.get_type_hints(kind).values():
        for inner in (hint, *typing.get_args(hint)):
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                names |= _all_field_names(inner)
    return names
