from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from tiny import make_project


@pytest.fixture(scope="session")
def project_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def project(project_template: Path, tmp_path: Path) -> Path:
    """A fresh working directory with a tiny dataset and config."""
    return shutil.copytree(project_template, tmp_path / "project")
