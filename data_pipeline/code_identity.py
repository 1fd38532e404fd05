"""What code made something, our modules and the libraries that they import: older results never pass for newer ones."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path

from common.files import sha256_of

_ROOT = Path(__file__).parents[1]


@cache
def code_of(module: str) -> dict[str, str]:
    """sha256 of a module and of all that it imports of this package, and versions of Python and of other packages.

    Imports inside functions count too, whether they have run or not. Left out are configs, whose values are settings,
    and `common`, in which nothing decides what becomes of a text.
    """
    found: dict[str, str] = {"python": f"{sys.version_info[0]}.{sys.version_info[1]}"}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _file_of(name)
        if name in found or name.endswith(".config") or path is None:
            continue
        found[name] = sha256_of(path)
        for imported in _imports(path):
            package = imported.partition(".")[0]
            if package == __package__:
                waiting.append(imported)
            elif package != "common" and package not in sys.stdlib_module_names:
                found |= {distribution: version(distribution) for distribution in _distributions().get(package, ())}
    return dict(sorted(found.items()))


def _file_of(module: str) -> Path | None:
    """The source file of one of our modules; None for a name that is none, such as a class's."""
    place = _ROOT.joinpath(*module.split("."))
    return next((path for path in (place.with_name(f"{place.name}.py"), place / "__init__.py") if path.is_file()), None)


def _imports(path: Path) -> Iterator[str]:
    """Names that a file imports, each with and without what it takes of it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def _distributions() -> dict[str, list[str]]:
    """Names of installed distributions by the package that they bring; reading them all takes a moment."""
    return {package: sorted(set(names)) for package, names in packages_distributions().items()}
