"""The parts of report and card that can be told without a dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.cli import load_config, to_dict
from data_pipeline.config import DataConfig, SplitConfig
from data_pipeline.quality import filters
from data_pipeline.report import card, clusters, recipe
from data_pipeline.report.rules import SETTINGS, settings_of
from data_pipeline.sources.config import HubDataset, PackagedWikipedia, PythonCode, TextFiles


def test_differences_are_words() -> None:
    kept, removed = clusters.compare("one two\n  three four", "one 2\n  three\n  five four six ")
    assert [(part.kind, part.text) for part in kept] == [
        ("same", "one "), ("differs", "two"), ("same", "\n  "), ("same", "three "), ("same", "four"),
    ]  # fmt: skip
    assert [part.text for part in removed if part.kind == "differs"] == ["2", "five", "six"]
    long = " ".join(map(str, range(2000)))
    kept, _ = clusters.compare(long, long)
    assert [part.kind for part in kept] == ["same", "gap", "same", "gap"] and len(str(kept)) < 1000


def test_the_largest_clusters_are_shown_first_then_the_least_similar() -> None:
    owner = np.array([0, 0, 1, 2, 3, 3, 3, 4])
    sizes = np.array([3, 2, 2, 4, 2])
    similarities = np.array([0.9, 0.95, 0.85, 0.81, 0.99, 0.97, 0.98, 0.85])
    ranks = np.array([0, 1, 9, 3, 4, 5, 6, 2], np.uint64)
    assert clusters.choose(owner, sizes, similarities, ranks) == [5, 0, 3, 7, 2]


def test_licences_beside_others_ask_for_attribution() -> None:
    licences = {
        "MIT": 1,
        "CC-BY-SA-4.0": 1,
        "MIT AND CC-BY-4.0": 1,
        "GPL-2.0 OR (cc-by-nc-sa-3.0)": 1,
        "ACC-BYTE-SA": 1,
    }
    assert card.attribution(licences) == {
        "attribution": ["CC-BY-SA-4.0", "MIT AND CC-BY-4.0", "GPL-2.0 OR (cc-by-nc-sa-3.0)"],
        "share_alike": ["CC-BY-SA-4.0", "GPL-2.0 OR (cc-by-nc-sa-3.0)"],
    }


def test_a_config_file_is_written_from_any_manifest(tmp_path: Path) -> None:
    config = DataConfig(
        sources=(
            PackagedWikipedia(language="fr"),
            PythonCode(packages=("numpy",)),
            HubDataset("a/b", "hub", "MIT", accepted_licences=("mit", 'a"\n')),
            TextFiles(("*.txt",)),
        ),
        split=SplitConfig(seed=3),
    )
    kinds = [{"kind": type(source).__name__} for source in config.sources]
    text = recipe.config_file({"sources": kinds, "config": to_dict(config)})
    assert text is not None
    (tmp_path / "config.py").write_text(text)
    assert load_config(tmp_path / "config.py", DataConfig) == config
    assert recipe.config_file({"sources": [{"kind": "Telepathy"}], "config": to_dict(config)}) is None


def test_every_filter_names_its_settings() -> None:
    class Anything(dict[str, np.ndarray]):
        def __missing__(self, key: str) -> np.ndarray:
            return np.zeros(1)

    config = DataConfig()
    prose, code = config.filters.prose, config.filters.code
    rules = [filters.length_rules(Anything(), config.filters), filters.code_rules(Anything(), code)]
    rules += [filters.prose_rules(Anything(), prose), filters.content_rules(Anything(), prose)]
    assert {reason for rule in rules for reason in rule} <= set(SETTINGS["filter"])
    settings = settings_of(to_dict(config))
    for reasons in SETTINGS.values():
        for reason, names in reasons.items():
            assert all(settings[name].meaning for name in names), reason
    assert settings["filters.prose.max_top_ngram[1]"].value == 0.18
