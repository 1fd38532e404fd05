"""What report and dataset card say of a dataset, and when they are drawn."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.image import imread
from test_data_helpers import dropped_rows, prose, replace_words, small_config, stage_directory, write_jsonl

from common.cli import load_config
from common.errors import UserError
from common.files import read_json, write_json
from data_pipeline.config import (
    CleaningConfig,
    DataConfig,
    DecontaminationConfig,
    DeduplicationConfig,
)
from data_pipeline.documents import stable_hash
from data_pipeline.pipeline import curate
from data_pipeline.report import card, clusters, figures, survey
from data_pipeline.report.__main__ import main
from data_pipeline.sources.config import TextFiles

HOSTILE = "</pre><script>alert(1)</script> <img src=x onerror=alert(2)> | `code` & "
NAMES = ["first", "<b>second|</b> $x$"]
FILES = ["README.md", "cluster_sizes.png", "funnel.png", "lengths.png", "report.html", "tokens_by_source.png"]
VOID = {"meta", "img", "br"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Two sources with 5 short texts, 1 without stop words, 3 near and 2 exact duplicates, 2 unreadable records."""
    folder = tmp_path_factory.mktemp("corpus")
    first = [prose(seed) for seed in range(90)]
    first += [HOSTILE + "Write to ann.lee@mail.org. " + "x" * number for number in range(5)]
    first += ["Broken text: schÃ¶n, sagte er. " + prose(200), prose(201) + "\n\nSubscribe now\n\nEnd of it all."]
    second = [prose(seed) for seed in range(1000, 1060)] + ["word " * 200]
    # A cluster of four, and two of two that are equal but for case and spaces.
    second += [replace_words(prose(3), seed, 1) for seed in (5, 6)] + [replace_words(prose(3), 7, 2)]
    second += [prose(8).capitalize(), prose(9).replace("\n", " \n")]
    paths = [write_jsonl(folder / "first.jsonl", first), write_jsonl(folder / "second.jsonl", second)]
    with paths[0].open("a") as file:
        file.write('{"text": 3}\n["<script>"]\n')
    sources = tuple(
        TextFiles(patterns=(str(path),), name=name, licence=licence)
        for path, name, licence in zip(paths, NAMES, ("CC-BY-SA-4.0", "CC0-1.0"), strict=True)
    )
    return small_config(sources=sources)


@pytest.fixture(scope="module")
def built(config: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "mixed"
    curate(config, out, workers=1)
    return out


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "mixed"))


def page(out: Path) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


def section(out: Path, name: str) -> str:
    """One section of the report, as text without tags."""
    parts = {part.partition('"')[0]: part for part in page(out).split('<h2 id="')[1:]}
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", parts[name].partition(">")[2])).split())


class Tags(HTMLParser):
    """Checks that every element is closed, and collects their names."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def times(out: Path) -> dict[str, int]:
    return {name: (out / name).stat().st_mtime_ns for name in FILES}


def test_every_section_has_its_numbers(built: Path) -> None:
    manifest = read_json(built / "manifest.json")
    stages = {stage["name"]: stage for stage in manifest["stages"]}
    assert stages["filter"]["dropped"] == {"stop_words": 1, "too_few_words": 5}
    for name, stage in stages.items():
        counted = [stage["documents_in"], stage["documents_out"], sum(stage["dropped"].values())]
        row = " ".join(f"{number:,}" for number in [*counted, stage["bytes_in"], stage["bytes_out"]])
        assert f"{name} {row}" in section(built, "funnel")
    dropped = section(built, "dropped")
    assert "filter: 6 of 163 documents" in dropped and "too_few_words 5" in dropped and "stop_words 1" in dropped
    assert "filters.prose.min_words = 20. Gopher: fewer words are dropped." in dropped
    for name, count in stages["clean"]["repairs"].items():
        assert f"{name.replace('_', ' ')} {count}" in section(built, "repairs")
    assert stages["clean"]["repairs"] == {"boilerplate_lines": 1, "emails": 5, "repaired_encodings": 1}
    assert "no_text 1 first:" in section(built, "quarantine") and "line 98" in section(built, "quarantine")
    assert "2 exact and 3 near duplicates" in section(built, "duplicates")
    sources = section(built, "sources")
    for source in manifest["sources"]:
        for split, counts in source["splits"].items():
            assert f"{split} {counts['documents']:,} {counts['bytes']:,} {counts['tokens']:,}" in sources
        use = source["tokenizer_use"]
        assert f"{source['name']} {source['bytes_per_token']:.2f} {use['tokens_per_word']:.2f}" in section(
            built, "tokenizer"
        )
    assert "CC-BY-SA-4.0" in sources and "CC0-1.0" in sources
    assert "python -m data_pipeline.report data/mixed" in section(built, "provenance")
    assert "en 152" in section(built, "languages")


def test_bytes_by_stage_are_those_of_the_texts(built: Path) -> None:
    for stage in read_json(built / "manifest.json")["stages"]:
        if stage["name"] == "arrange":  # which holds no texts
            continue
        directory = next((built / "stages").glob(f"*_{stage['name']}"))
        kept = [json.loads(line)["text"] for path in directory.glob("*.jsonl") for line in path.open(encoding="utf-8")]
        assert stage["bytes_out"] == sum(len(text.encode()) for text in kept)


def test_tokenizer_statistics_are_those_of_the_shards(built: Path) -> None:
    manifest = read_json(built / "manifest.json")
    counts = np.zeros(manifest["vocab_size"], np.int64)
    for path in built.glob("*.bin"):
        counts += np.bincount(np.fromfile(path, manifest["dtype"]), minlength=len(counts))
    counts[manifest["eos_id"]] = 0
    learned = counts[7 + 256 :]
    use = manifest["tokenizer"]["use"]
    assert use["unused_pieces"] == int((learned == 0).sum())
    assert use["byte_tokens"] == int(counts[7 : 7 + 256].sum())
    assert list(use["frequent_pieces"].values()) == sorted(learned.tolist(), reverse=True)[:12]
    assert use["words"] == sum(source["tokenizer_use"]["words"] for source in manifest["sources"])
    assert use["tokens_per_word"] == round(int(counts.sum()) / use["words"], 4)
    lengths = [len(piece) for piece in use["longest_pieces"]]
    assert lengths == sorted(lengths, reverse=True)


def test_hostile_texts_stay_text(built: Path) -> None:
    tags = Tags()
    tags.feed(page(built))
    assert not tags.open and "script" not in tags.seen
    assert page(built).count("<img ") == 5 and "onerror=alert(2)&gt;" in page(built)
    assert "[&#34;&lt;script" not in page(built)  # of a quarantined record only the place is told
    text = re.sub(r"```.*?```", "", (built / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert "<b>" not in text and "&lt;b&gt;second\\|&lt;/b&gt; $x$" in text
    assert card.markdown("a\n|b_c _d_ <e>") == "a \\|b_c \\_d\\_ &lt;e&gt;"


def test_examples_are_the_first_by_hash_masked_and_short(built: Path) -> None:
    rows = [row for row in dropped_rows(built, "filter") if row["reason"] == "too_few_words"]
    ids = sorted((row["id"] for row in rows), key=lambda key: stable_hash("example", key))
    assert len(ids) == 5 and [key in section(built, "dropped") for key in ids] == [True] * 3 + [False] * 2
    assert "ann.lee" not in page(built)
    text = "of " * 99 + "a.b@mail.org" + " and" * 9
    assert survey.excerpt(text) == "of " * 99 + "<EM …"
    found = survey.Dropped()
    for number in range(50):
        found.add_example("why", str(number), 0, "text")
    assert len(found.examples["why"]) == 3


def test_clusters_are_shown_side_by_side(built: Path) -> None:
    found = clusters.find_clusters(built / "stages")
    assert found.sizes == {2: 2, 4: 1}
    assert [pair.size for pair in found.pairs] == [4, 2, 2]
    largest, *others = found.pairs
    rows = [json.loads(line) for line in (stage_directory(built, "duplicates") / "all.duplicates.jsonl").open()]
    own = [row for row in rows if row["cluster"] == largest.cluster]
    assert len(own) == 3 and largest.similarity == min(row["similarity"] for row in own) < 1
    assert largest.reason == "near_duplicate" and {pair.reason for pair in others} == {"exact_duplicate"}
    texts = {row["id"]: row["text"] for row in dropped_rows(built, "deduplicate")}
    marked = [segment.text for segment in largest.segments[1] if segment.kind == "differs"]
    assert 1 <= len(marked) <= 2 and all(word in texts[largest.removed] for word in marked)
    assert html.escape(marked[0]).join(("<mark>", "</mark>")) in page(built)
    assert f"similarity {largest.similarity:.3f}" in section(built, "duplicates")


def test_figures_are_pictures_and_any_number_of_bars_fits(built: Path) -> None:
    for name in FILES:
        if name.endswith(".png"):
            assert min(imread(built / name).shape[:2]) > 100
    many = [
        {"name": f"a${number}" * 9, "splits": {"train": {"tokens": number}, "val": {"tokens": 1}}}
        for number in range(40)
    ]
    assert figures.tokens_by_source(many) == figures.tokens_by_source(many[::-1])
    assert figures.cluster_sizes({2: 900, 3: 4, 100_000: 1})
    nothing = np.zeros(4, np.int64)
    assert figures.lengths(np.array([1, 2, 4, 8, 16]), nothing, nothing)


def test_a_rerun_touches_nothing_and_a_missing_figure_comes_back(config: DataConfig, copy: Path) -> None:
    before, content = times(copy), (copy / "funnel.png").read_bytes()
    curate(config, copy, workers=1)
    assert times(copy) == before
    (copy / "funnel.png").unlink()
    (copy / "README.md").write_text("My own words.")  # without the mark it belongs to the reader
    curate(config, copy, workers=1)
    assert (copy / "funnel.png").read_bytes() == content
    assert (copy / "README.md").read_text() == "My own words."
    rewritten = {name for name, time in times(copy).items() if time != before[name]}
    assert rewritten == {"funnel.png", "README.md"}


def test_a_changed_rule_is_told(config: DataConfig, copy: Path) -> None:
    before = page(copy)
    curate(replace(config, cleaning=CleaningConfig(mask_personal=False)), copy, workers=1)
    assert page(copy) != before and "cleaning.mask_personal False" in section(copy, "provenance")
    assert "Personal data were not masked" in (copy / "README.md").read_text(encoding="utf-8")
    assert "ann.lee" not in page(copy)


def test_workers_do_not_change_a_byte(config: DataConfig, built: Path, tmp_path: Path) -> None:
    curate(config, tmp_path / "mixed", workers=2)
    for name in FILES:
        assert (tmp_path / "mixed" / name).read_bytes() == (built / name).read_bytes(), name


def test_one_source_without_duplicates_is_told_as_such(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [prose(seed) for seed in range(60)])
    curate(small_config(path), tmp_path / "plain", workers=1)
    assert "No duplicates were found." in section(tmp_path / "plain", "duplicates")
    assert "No document was dropped." in section(tmp_path / "plain", "dropped")
    assert "Every record could be read." in section(tmp_path / "plain", "quarantine")
    assert not (tmp_path / "plain" / "cluster_sizes.png").exists()
    assert "### Attribution" not in (tmp_path / "plain" / "README.md").read_text(encoding="utf-8")


def test_without_stages_there_are_numbers_but_no_examples(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copy / "stages")
    main([str(copy)])
    assert "report.html" in capsys.readouterr().out
    assert "stages/" in page(copy) and "too_few_words 5" in section(copy, "dropped")
    assert "alert(1)" not in page(copy) and "<mark>" not in page(copy)
    assert "2 exact and 3 near duplicates" in section(copy, "duplicates")
    assert not (copy / "stages").exists() and not (copy / "cluster_sizes.png").exists()


def test_drawing_again_gives_the_same_bytes(copy: Path, built: Path) -> None:
    (copy / "report.html").write_text("old")
    main([str(copy)])
    assert page(copy) == page(built)


def test_languages_have_a_section_where_documents_have_one(copy: Path) -> None:
    for path in copy.glob("*.documents.jsonl"):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        lines = [json.dumps({**row, "language": "en" if row["source"] == "first" else "nl"}) for row in rows]
        path.unlink()
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    main([str(copy)])
    sources = read_json(copy / "manifest.json")["sources"]
    for source, language in zip(sources, ("en", "nl"), strict=True):
        documents, size = (sum(split[unit] for split in source["splits"].values()) for unit in ("documents", "bytes"))
        assert f"{language} {documents:,} {size:,}" in section(copy, "languages")
    assert imread(copy / "languages.png").size
    assert front_matter(copy)["language"] == ["en", "nl"]
    path = copy / "val_00000.documents.jsonl"  # of any source
    path.write_text(path.read_text(encoding="utf-8").replace('"kind": "prose"', '"kind": "code"', 1), encoding="utf-8")
    main([str(copy)])
    assert front_matter(copy)["language"] == ["en", "nl", "code"]


def front_matter(out: Path) -> dict[str, object]:
    head = (out / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    values: dict[str, object] = yaml.safe_load(head)
    return values


def code_blocks(text: str) -> Iterator[str]:
    yield from re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_card_states_what_the_hub_asks_for(built: Path) -> None:
    assert front_matter(built) == {
        "license": ["cc-by-sa-4.0", "cc0-1.0"],
        "language": ["en"],
        "size_categories": ["n<1K"],
        "task_categories": ["text-generation"],
        "pretty_name": "mixed",
    }
    text = (built / "README.md").read_text(encoding="utf-8")
    assert "| too_few_words | `filters.prose.min_words` = 20 | 5 |" in text
    assert "| near_duplicate | `deduplication.threshold` = 0.8," in text
    assert "Under CC-BY-SA-4.0 whatever is adapted" in text and "E-mail addresses (5)" in text
    for heading in ("Description", "Sources", "Processing", "Statistics", "Splits", "Personal data and secrets"):
        assert f"\n## {heading}\n" in text
    for heading in ("Known limitations", "How to load", "How to reproduce"):
        assert f"\n## {heading}\n" in text
    assert [card.size_category(number) for number in (999, 1000, 54_321, 10**6, 10**11)] == [
        "n<1K", "1K<n<10K", "10K<n<100K", "1M<n<10M", "n>10B",
    ]  # fmt: skip
    assert card.hub_licences({"MIT License": 1, "MIT": 1, "per-file": 9, "Apache-2.0": 3}) == [
        "apache-2.0",
        "mit",
        "other",
    ]


def test_the_examples_of_the_card_work(
    config: DataConfig, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load, reproduce = code_blocks((built / "README.md").read_text(encoding="utf-8"))
    monkeypatch.chdir(built)
    exec(load, {})
    first = json.loads((built / "train_00000.documents.jsonl").read_text(encoding="utf-8").split("\n")[0])
    rows = [json.loads(line) for path in stage_directory(built, "split").glob("*.jsonl") for line in path.open()]
    assert capsys.readouterr().out == next(row["text"] for row in rows if row["id"] == first["id"]) + "\n"
    (tmp_path / "again.py").write_text(reproduce)
    assert load_config(tmp_path / "again.py", DataConfig) == config


def test_the_card_of_a_tokenizer_of_others_names_it_and_loads_it(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = copy / "tokenizer.model"
    header = {"format": "sentencepiece", "bos_token": None, "eos_tokens": ["</s>"]}
    model.write_bytes(json.dumps(header).encode() + b"\n" + model.read_bytes())
    main([str(copy)])
    text = (copy / "README.md").read_text(encoding="utf-8")
    assert "of a SentencePiece vocabulary" in text
    monkeypatch.chdir(copy)
    capsys.readouterr()
    exec(next(code_blocks(text)), {})
    assert len(capsys.readouterr().out) > 100
    manifest = read_json(copy / "manifest.json")
    for kind, name in (("tiktoken", "tiktoken"), ("huggingface", "Hugging Face")):
        write_json(copy / "manifest.json", {**manifest, "tokenizer": {**manifest["tokenizer"], "kind": kind}})
        main([str(copy)])
        assert f"tokens of a {name} vocabulary" in (copy / "README.md").read_text(encoding="utf-8")
        assert section(copy, "tokenizer").startswith(f"Tokenizer {name} with")


def test_a_dataset_of_an_older_version_is_refused_with_the_command(copy: Path) -> None:
    manifest = read_json(copy / "manifest.json")
    del manifest["tokenizer"]["use"]
    write_json(copy / "manifest.json", manifest)
    with pytest.raises(UserError, match="older version; make it again with: python -m data_pipeline"):
        main([str(copy)])


def test_what_else_deduplication_took_out_is_shown(tmp_path: Path) -> None:
    exam, common, notice = prose(901, 40), prose(902, 20), prose(903, 60).replace("\n", " ")
    texts = [prose(seed) for seed in range(60)] + [f"{prose(70 + n)}\n\n{notice}" for n in range(3)]
    texts += [f"{prose(80, 60)} {exam} Write to ann.lee@mail.org. {prose(81, 60)}"]
    texts += [f"{prose(100 + n, 60)} {common} {prose(200 + n, 60)}" for n in range(12)]
    exams = write_jsonl(tmp_path / "exam.jsonl", [exam + " Write to ann.lee@mail.org.", common])
    config = small_config(
        write_jsonl(tmp_path / "texts.jsonl", texts),
        cleaning=CleaningConfig(mask_personal=False),
        deduplication=DeduplicationConfig(paragraphs=True),
        decontamination=DecontaminationConfig((str(exams),)),
    )
    out = tmp_path / "data"
    curate(config, out, workers=1)
    paragraphs, found = section(out, "paragraphs"), section(out, "decontamination")
    assert "2 paragraphs" in paragraphs and "out of 2 documents" in paragraphs and "at least 2 times" in paragraphs
    assert notice[:200] in paragraphs
    assert "1 documents were dropped" in found and str(exams) in found
    assert " ".join(re.findall(r"\w+", exam.lower())[:13]) in found and "12 " in found
    card_text = (out / "README.md").read_text(encoding="utf-8")
    assert "has too were removed (2)" in card_text and "evaluation text were dropped (1)" in card_text
    assert {"#paragraphs", "#decontamination"} <= set(re.findall(r'href="(#\w+)"', page(out)))
