"""The pages of runs in a browser: nothing is asked for, and nothing sticks out on a phone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from inference_fixtures import World, make_run, make_world, run_all

from common.files import read_json, write_json

api = pytest.importorskip("playwright.sync_api")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
PICTURES = os.environ.get("PAGE_PICTURES")  # a directory to keep pictures of the pages in
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")]
LONG = "a_name_without_any_place_where_a_line_could_be_broken_" * 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two runs that were evaluated, with long words in names and samples, and their comparison."""
    world = make_world(tmp_path_factory.mktemp("page"))
    fingerprint = read_json(world.data / "manifest.json")["fingerprint"]
    make_run(world.run.parent / LONG[:100], fingerprint=fingerprint, width=64, heads=4)
    (world.run / "samples.jsonl").write_text(
        f'{{"step": 10, "tokens": 640, "prompt": "The ", "text": "{LONG * 5}"}}\n', encoding="utf-8"
    )
    for name in ("tiny", LONG[:100]):
        ((code, _, err),) = run_all("evaluation.__main__", [[name, "--document-context"]], world.root)
        assert code == 0, err
    part = {"diversity": {"distinct_2": 0.5, "mattr": 0.7}, "repetition": {"seq_rep_4": 0.1}}
    summary = read_json(world.run / "summary.json")
    write_json(
        world.run / "summary.json", {**summary, "generation": {"model": part, "human": part, "protocol": {"seed": 0}}}
    )
    for arguments in (["tiny"], ["tiny", LONG[:100]]):
        assert run_all("evaluation.report", [arguments], world.root)[0][0] == 0
    return world


@pytest.fixture(scope="module")
def browser() -> Iterator[api.Browser]:
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["tiny/report.html", "comparison.html"])
def test_a_page_asks_for_nothing_and_fits(browser: api.Browser, world: World, name: str, width: int) -> None:
    path = world.run.parent / name
    scheme = "dark" if width == 390 else "light"
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, java_script_enabled=True
    )
    page, asked, wrong = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: wrong.append(message.text))
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert asked == [path.as_uri()] and wrong == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # What is wider than the page scrolls in a box of its own, and no text of a chart leaves its picture.
    outside = page.evaluate(
        """() => [...document.querySelectorAll('svg text')].filter(text => {
            const own = text.getBoundingClientRect(), svg = text.closest('svg').getBoundingClientRect();
            return own.left < svg.left - 1 || own.right > svg.right + 1 || own.bottom > svg.bottom + 1;
        }).map(text => text.textContent)"""
    )
    assert outside == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(20, 25, 31)") == (scheme == "dark")
    if PICTURES:
        page.screenshot(path=str(Path(PICTURES) / f"{path.stem}_{width}.png"), full_page=True)
    context.close()
