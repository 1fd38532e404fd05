from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tiny import make_project

# One thread everywhere: the workers of a parallel test run share the cores, and what runs in this process must equal
# what runs in a subprocess bit for bit.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


# The same examples in every run, and no limit on the time of one: a loaded machine must not fail a test.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def project_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def project(project_template: Path, tmp_path: Path) -> Path:
    """A fresh working directory with a tiny dataset and config."""
    return shutil.copytree(project_template, tmp_path / "project")
