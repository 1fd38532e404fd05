from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

# One thread everywhere: the workers of a parallel test run share the cores, and what runs in this process must equal
# what runs in a subprocess bit for bit. Said before our commands are imported, which would bind this process.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"  # the few that have two threads must not spin on a core that others need

import pytest
import torch
from hypothesis import settings
from test_data_helpers import small_config, write_config, write_corpus
from tiny import make_project
from tuning import make_base

from data_pipeline.config import DataConfig
from data_pipeline.pipeline import curate

torch.set_num_threads(1)

# transformers copies the code of a model that it loads; not into the cache of whoever runs the tests.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="modules_")
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)

# The same examples in every run, and no limit on the time of one: a loaded machine must not fail a test.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two files of texts that are worth curating."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def config_file(corpus: list[Path]) -> Path:
    return write_config(corpus[0].parent / "config.py", corpus)


@pytest.fixture(scope="session")
def built(corpus: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[DataConfig, Path]:
    """The corpus, curated in one process; to be looked at and copied, never changed."""
    config, out = small_config(*corpus), tmp_path_factory.mktemp("built") / "data"
    curate(config, out, workers=1, executor="serial")
    return config, out


@pytest.fixture(scope="session")
def project_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def tuning_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("tuning"))


@pytest.fixture
def tuning(tuning_template: Path, tmp_path: Path) -> Path:
    """A fresh working directory with a trained run `base`, `questions.txt` and `tune.py`."""
    return shutil.copytree(tuning_template, tmp_path / "tuning")


@pytest.fixture
def project(project_template: Path, tmp_path: Path) -> Path:
    """A fresh working directory with a tiny dataset and config."""
    return shutil.copytree(project_template, tmp_path / "project")
