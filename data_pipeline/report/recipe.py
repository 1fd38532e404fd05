"""The config file that makes a dataset again, written from its manifest."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from common.cli import to_dict
from data_pipeline import config as config_module
from data_pipeline.config import DataConfig
from data_pipeline.sources import config as source_module

_INDENT = "    "
_WIDTH = 100


def config_file(manifest: dict[str, Any]) -> str | None:
    """Python that defines the manifest's config, with the fields that differ from their defaults.

    None where a source is of a kind that this version does not know.
    """
    kinds = [getattr(source_module, source["kind"], None) for source in manifest["sources"]]
    if not all(map(is_dataclass, kinds)):
        return None
    values = manifest["config"]
    used: set[type] = {DataConfig}
    sources = [_call(kind, source, used) for kind, source in zip(kinds, values["sources"], strict=True)]
    rest = {name: value for name, value in values.items() if name != "sources"}
    arguments = [f"sources={_brackets('(', sources, ')')}", *_arguments(DataConfig, rest, used)]
    lines = []
    for module in (config_module, source_module):
        names = sorted(kind.__name__ for kind in used if kind.__module__ == module.__name__)
        lines.append(f"from {module.__name__} import {', '.join(names)}")
    return "\n".join([*lines, "", f"config = {_brackets('DataConfig(', arguments, ')')}", ""])


def _call(kind: Any, values: dict[str, Any], used: set[type]) -> str:
    """`values` as a call of the dataclass `kind`, which is added to `used`."""
    used.add(kind)
    arguments = _arguments(kind, values, used)
    line = f"{kind.__name__}({', '.join(arguments)})"
    if len(line) <= _WIDTH and "\n" not in line:
        return line
    return _brackets(f"{kind.__name__}(", arguments, ")")


def _arguments(kind: Any, values: dict[str, Any], used: set[type]) -> list[str]:
    arguments = []
    for field in fields(kind):
        if field.name not in values:
            continue
        default, value = _default(field), values[field.name]
        if is_dataclass(default):
            if value != to_dict(default):
                arguments.append(f"{field.name}={_call(type(default), value, used)}")
        elif default is MISSING or _tuples(value) != default:
            arguments.append(f"{field.name}={_tuples(value)!r}")
    return arguments


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(each) for key, each in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _brackets(opening: str, arguments: list[str], closing: str) -> str:
    indented = "\n".join(f"{argument}," for argument in arguments).replace("\n", f"\n{_INDENT}")
    return f"{opening}\n{_INDENT}{indented}\n{closing}"
