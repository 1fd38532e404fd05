"""The page, used in a browser: by pointer, by keyboard, on a phone, and without anything from elsewhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_fixtures import Running, load, make_chat_run, running, wait_for

from serving.options import ServerOptions

api = pytest.importorskip("playwright.sync_api")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
PICTURES = os.environ.get("PAGE_PICTURES")  # a directory to keep pictures of the page in
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    loaded = load(make_chat_run(tmp_path_factory.mktemp("page") / "tiny"))
    with running(loaded, ServerOptions(slots=4)) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[api.Browser]:
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


class Page:
    """The page of a server, and everything that went wrong in it."""

    def __init__(self, browser: api.Browser, server: Running, width: int, dark: bool = False) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light", has_touch=width < 500
        )
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(server.url)
        self.page.wait_for_selector("#model option", state="attached")

    def fill(self, **fields: object) -> None:
        for name, value in fields.items():
            self.page.evaluate("([id, value]) => document.getElementById(id).value = value", [name, str(value)])

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def wait_until_written(self) -> None:
        self.page.wait_for_selector("#stop:disabled")

    def picture(self, name: str) -> None:
        if PICTURES:
            self.page.screenshot(path=str(Path(PICTURES) / f"{name}.png"), full_page=True)


@pytest.fixture(params=[1280, 390])
def page(browser: api.Browser, server: Running, request: pytest.FixtureRequest) -> Iterator[Page]:
    page = Page(browser, server, request.param, dark=request.param == 390)
    yield page
    page.context.close()
    assert page.wrong == []
    assert all(url.startswith(server.url) for url in page.asked)


def test_chat(page: Page, server: Running) -> None:
    page.fill(temperature=0, max_tokens=30)
    page.page.fill("#input", "Näme?")
    page.page.press("#input", "Enter")
    page.wait_until_written()
    body = {"messages": [{"role": "user", "content": "Näme?"}], "max_tokens": 30, "temperature": 0}
    answer = server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    shown = page.page.text_content(".turn.assistant") or ""
    assert shown.startswith(answer) and "cut off" in shown.removeprefix(answer)
    assert page.text(".turn.user") == "Näme?" and page.page.input_value("#input") == ""
    assert "30 tokens" in page.text("#speed") and "tokens/s" in page.text("#speed")
    page.picture(f"chat_{page.page.viewport_size['width']}")
    page.page.fill("#input", "And?")
    page.page.click("#send")
    page.wait_until_written()
    assert page.page.locator(".turn").count() == 4
    page.page.click("#clear")
    assert page.page.locator(".turn").count() == 0


def test_completion_with_probabilities(page: Page) -> None:
    width = page.page.viewport_size["width"]
    page.page.check("input[value=completion]", force=True)
    page.fill(temperature=0, max_tokens=40, seed=3)
    page.page.fill("#input", "The river")
    page.page.press("#input", "Control+Enter")
    page.wait_until_written()
    tokens = page.page.locator(".token")
    assert tokens.count() > 10
    tokens.nth(2).hover()
    card = page.page.locator("#card")
    assert card.is_visible() and card.locator("tr").count() >= 5 and "%" in card.inner_text()
    assert card.locator("tr.chosen").count() == 1
    page.picture(f"completion_{width}")
    page.page.mouse.move(0, 0)
    page.page.focus("#log")
    for _ in range(3):
        page.page.keyboard.press("ArrowRight")
    assert page.page.evaluate("document.activeElement.textContent") == tokens.nth(2).text_content()
    assert card.is_visible() and "%" in page.text("#spoken")
    page.page.keyboard.press("Escape")
    assert card.is_hidden()
    page.page.evaluate("document.getElementById('settings').open = true")
    page.page.check("#shade")
    page.picture(f"shaded_{width}")


def test_stop(page: Page, server: Running) -> None:
    page.page.check("input[value=completion]", force=True)
    page.fill(max_tokens=1000, temperature=0)
    page.page.fill("#input", "The river")
    # With the first token, and in the page itself: from out here the text would be whole before the click.
    page.page.evaluate(
        """new MutationObserver((_, watch) => {
            if (!document.querySelector(".token")) return;
            watch.disconnect();
            document.getElementById("stop").click();
        }).observe(document.getElementById("log"), { childList: true, subtree: true })"""
    )
    page.page.click("#send")
    page.page.wait_for_selector(".token")
    page.wait_until_written()
    assert "stopped" in (page.page.text_content(".turn") or "")
    wait_for(lambda: server.idle)


def test_an_error_is_shown(page: Page) -> None:
    page.fill(temperature=9)
    page.page.fill("#input", "Näme?")
    page.page.click("#send")
    page.wait_until_written()
    assert "temperature" in page.text("#error")
    assert page.page.locator(".turn").count() == 0 and page.page.input_value("#input") == "Näme?"
    page.picture(f"error_{page.page.viewport_size['width']}")
    assert len(page.wrong) == 1 and "400" in page.wrong[0]  # the browser's own note
    page.wrong.clear()


def test_everything_has_a_name_and_a_place(page: Page) -> None:
    page.page.evaluate("document.getElementById('settings').open = true")
    unnamed = page.page.evaluate(
        "[...document.querySelectorAll('input, select, textarea, button')]"
        ".filter(one => !one.labels?.length && !one.textContent.trim()).map(one => one.id)"
    )
    assert unnamed == []
    assert page.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    small = page.page.evaluate(
        "[...document.querySelectorAll('button')]"
        ".filter(one => one.getBoundingClientRect().height < 36).map(one => one.id)"
    )
    assert small == []


def test_a_key_is_asked_for(browser: api.Browser, server: Running) -> None:
    with running(server.service.loaded, keys=["secret"]) as locked:
        context = browser.new_context()
        page = context.new_page()
        page.goto(locked.url)
        page.wait_for_selector("#error:not([hidden])")
        assert "no API key was given" in page.inner_text("#error")
        page.fill("#key", "secret")
        page.press("#key", "Tab")
        page.wait_for_selector("#model option", state="attached")
        context.close()
