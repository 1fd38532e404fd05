"""Fetching web pages from a real server on this machine."""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Iterator
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path

import pytest
from test_data_helpers import prose
from test_data_sources import collected
from web_site import Handler, Page, Site, answer, answering, serving, to

from common.errors import UserError
from data_pipeline import collect
from data_pipeline.config import CollectionConfig
from data_pipeline.sources import fetching, web_pages
from data_pipeline.sources.config import WebPages


def html(number: int) -> bytes:
    return f"<html><head><title>Page {number}</title></head><body><p>{prose(number)}</p></body></html>".encode()


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as server:
        yield server


@pytest.fixture
def other() -> Iterator[Site]:
    """To be asked as "localhost": two names of one machine are two hosts."""
    with serving() as server:
        yield server


def source(*urls: str, delay: float = 0.0, timeout: float = 5.0, **others: object) -> WebPages:
    return WebPages(urls=urls, delay=delay, timeout=timeout, **others)  # type: ignore[arg-type]


def reasons(quarantined: list[dict[str, str]]) -> dict[str, str]:
    return {row["file"].rpartition("/")[2]: row["reason"] for row in quarantined}


def test_pages_are_fetched_once_and_kept(tmp_path: Path, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.pages |= {"/1": html(1), "/2": to("/1"), "/3": answering(b"Plain text. " * 9, content_type="text/plain")}
    (tmp_path / "urls.txt").write_text(
        f"\ufeff# my pages\n\n {site.url('/1')} \n{site.url('/1#part')}\r\n"
        f"{site.url('/2')}\n{site.url('/3')}\n{site.url('/4')}"
    )
    wanted = WebPages(urls=str(tmp_path / "urls.txt"), delay=0, contact="me@example.org", licence="CC0-1.0")
    documents, quarantined, _ = collected(wanted, tmp_path)
    assert [document.text.split("\n")[0] for document in documents[:2]] == ["Page 1", "Page 1"]
    assert documents[2].text == ("Plain text. " * 9).strip()
    assert [document.origin for document in documents[:2]] == [site.url("/1")] * 2
    assert documents[1].id == f"web/{site.url('/2')}" and documents[0].licence == "CC0-1.0"
    assert documents[0].group == "127.0.0.1" and documents[0].revision == documents[1].revision != ""
    assert reasons(quarantined) == {"4": "http_404"}
    assert sorted(path for path, _, _ in site.requests) == ["/1", "/1", "/2", "/3", "/4", "/robots.txt"]
    assert {agent for _, _, agent in site.requests} == {"mini-gpt-data/1.0 (+me@example.org)"}
    assert "web: 4 of 4 pages asked for, 1 failed\n" in capsys.readouterr().out
    before = len(site.requests)
    assert collected(wanted, tmp_path)[0] == documents  # the page that is not there is not asked for again either
    assert len(site.requests) == before and capsys.readouterr().out == ""


def test_a_deleted_or_damaged_page_is_fetched_again_and_refresh_fetches_all(tmp_path: Path, site: Site) -> None:
    site.pages |= {f"/{n}": html(n) for n in range(3)}
    urls = [site.url(f"/{n}") for n in range(3)]
    first = collected(source(*urls), tmp_path)[0]
    kept = {json.loads(path.read_text())["url"]: path for path in (tmp_path / "downloads" / "web").glob("*.json")}
    kept[urls[0]].unlink()
    kept[urls[1]].with_suffix(".body").write_bytes(b"torn")
    assert collected(source(*urls), tmp_path)[0] == first
    assert [site.asked(f"/{n}") for n in range(3)] == [2, 2, 1]
    kept[urls[2]].write_text("{}")
    site.pages["/1"] = html(11)
    again = collected(source(*urls, refresh=True), tmp_path)[0]
    assert [site.asked(f"/{n}") for n in range(3)] == [3, 3, 2]
    assert [old.revision == new.revision for old, new in zip(first, again, strict=True)] == [True, False, True]
    del site.pages["/1"]
    site.pages["/0"] = hanging_up
    assert len(collected(source(*urls, refresh=True), tmp_path)[0]) == 2  # what may pass does not take a page away


def test_robots_txt_is_obeyed(tmp_path: Path, site: Site) -> None:
    site.pages["/robots.txt"] = (
        b"User-agent: *\nDisallow: /\n\nUser-agent: Mini-GPT-data\nDisallow: /no\nAllow: /no/but\nDisallow: /*.php$\n"
    )
    site.pages |= {path: html(1) for path in ("/yes", "/no/a", "/no/but", "/a.php")} | {"/sly": to("/no/a")}
    urls = [site.url(path) for path in ("/yes", "/no/a", "/no/but", "/a.php", "/sly")]
    documents, quarantined, _ = collected(source(*urls), tmp_path)
    assert [document.origin for document in documents] == [site.url("/yes"), site.url("/no/but")]
    assert reasons(quarantined) == {"a": "robots", "a.php": "robots", "sly": "robots"}
    assert not site.asked("/no/a") and not site.asked("/a.php") and site.asked("/robots.txt") == 1


def test_robots_txt_of_a_redirects_host_counts(tmp_path: Path, site: Site, other: Site) -> None:
    other.pages |= {"/robots.txt": b"User-agent: *\nDisallow: /secret", "/open": html(1), "/secret": html(2)}
    site.pages |= {f"/to{path}": to(other.url(f"/{path}", "localhost")) for path in ("open", "secret")}
    documents, quarantined, _ = collected(source(site.url("/toopen"), site.url("/tosecret")), tmp_path)
    assert [(document.origin, document.group) for document in documents] == [
        (other.url("/open", "localhost"), "localhost")
    ]
    assert reasons(quarantined) == {"tosecret": "robots"} and not other.asked("/secret")
    assert other.asked("/robots.txt") == site.asked("/robots.txt") == 1


@pytest.mark.parametrize("failure", ["busy", "silent", "loop"])
def test_without_an_answer_about_robots_nothing_is_fetched(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    monkeypatch.setattr(fetching, "_BACKOFF", 0.01)
    site.pages["/1"] = html(1)
    site.pages["/robots.txt"] = {
        "busy": answering(status=503),
        "silent": lambda handler: time.sleep(0.5),
        "loop": to("/robots.txt"),
    }[failure]
    _, quarantined, _ = collected(
        source(site.url("/1"), site.url("/2"), timeout=0.2 if failure == "silent" else 5.0), tmp_path
    )
    assert reasons(quarantined) == {"1": "robots_unavailable", "2": "robots_unavailable"}
    assert not site.asked("/1") and not site.asked("/2")
    assert site.asked("/robots.txt") == {"busy": 4, "silent": 1, "loop": 6}[failure]
    site.pages["/robots.txt"] = answering(status=403)  # which allows all, and another run may ask again
    assert len(collected(source(site.url("/1")), tmp_path)[0]) == 1


def test_a_host_gets_one_request_at_a_time_and_its_pauses(tmp_path: Path, site: Site, other: Site) -> None:
    """Also when another host redirects to it."""

    def slow(handler: Handler) -> None:
        time.sleep(0.05)
        answer(handler, html(1))

    site.pages |= {f"/{n}": slow for n in range(6)} | {"/robots.txt": b"User-agent: *\nCrawl-delay: 0.15"}
    other.pages |= {f"/{n}": to(site.url(f"/{n}")) for n in range(3)}
    urls = [other.url(f"/{n}", "localhost") for n in range(3)] + [site.url(f"/{n}") for n in range(3, 6)]
    assert len(collected(source(*urls, delay=0.02), tmp_path)[0]) == 6
    pauses = [after - before for (_, before, _), (_, after, _) in pairwise(site.requests)]
    assert len(pauses) == 6 and pauses[0] >= 0.02 and min(pauses[1:]) >= 0.15 and site.most_at_once == 1


def test_hosts_are_asked_side_by_side(tmp_path: Path, site: Site) -> None:
    def slow(handler: Handler) -> None:
        time.sleep(0.3)
        answer(handler, html(1))

    site.pages["/1"] = slow
    hosts = ("127.0.0.1", "localhost")
    documents, _, _ = collected(source(*(site.url("/1", host) for host in hosts)), tmp_path)
    assert [document.group for document in documents] == [*hosts] and site.most_at_once == 2


def test_busy_servers_are_asked_again_later(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_BACKOFF", 0.1)
    monkeypatch.setattr(fetching, "_MOST_PAUSE", 1.1)

    def after(tries: int, status: int, **headers: str) -> Page:
        left = [tries]

        def respond(handler: Handler) -> None:
            left[0] -= 1
            answer(handler, b"wait", status, **headers) if left[0] >= 0 else answer(handler, html(1))

        return respond

    site.pages |= {
        "/seconds": after(1, 429, Retry_After="1"),
        "/date": after(1, 503, Retry_After=formatdate(time.time() + 1000, usegmt=True)),  # more than it gets
        "/nonsense": after(2, 502, Retry_After="soon"),
        "/never": answering(status=500),
    }
    for path in ("seconds", "date", "nonsense", "never"):
        documents, quarantined, _ = collected(source(site.url(f"/{path}")), tmp_path / path)
        assert len(documents) == (path != "never") and reasons(quarantined) == (
            {"never": "http_500"} if not documents else {}
        )
    moments = {path: [moment for asked, moment, _ in site.requests if asked == path] for path in site.pages}
    pauses = {path: [after - before for before, after in pairwise(times)] for path, times in moments.items()}
    assert pauses["/seconds"][0] >= 1.0 and 1.1 <= pauses["/date"][0] < 60
    assert pauses["/nonsense"][0] >= 0.1 and pauses["/nonsense"][1] >= 0.2
    assert len(moments["/never"]) == 4


def endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html")
    handler.send_header("Connection", "close")
    handler.end_headers()
    for _ in range(2000):
        handler.wfile.write(b"<p>more " * 1000)


def dripping(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for _ in range(15):
        handler.wfile.write(b"1\r\nx\r\n")
        time.sleep(0.1)
    handler.wfile.write(b"0\r\n\r\n")


def hanging_up(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html")
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.wfile.write(b"<p>too little")
    handler.close_connection = True


def test_every_failure_has_its_reason_and_costs_only_its_page(tmp_path: Path, site: Site) -> None:
    bomb = gzip.compress(b"<p>" + bytes(30_000_000))
    site.pages |= {
        "/good": html(1),
        "/huge": html(1) + b"x" * 300_000,
        "/endless": endless,
        "/bomb": answering(bomb, Content_Encoding="gzip"),
        "/torn": answering(gzip.compress(html(1))[:50] + b"????", Content_Encoding="gzip"),
        "/br": answering(b"\x0b\x02\x80", Content_Encoding="br"),
        "/dripping": dripping,
        "/slow": lambda handler: time.sleep(1.1),
        "/cut": hanging_up,
        "/image": answering(b"\x89PNG", content_type="image/png"),
        "/loop": to("/loop2"),
        "/loop2": to("/loop"),
        "/ftp": to("ftp://127.0.0.1/x"),
        "/file": to("file:///etc/passwd"),
        "/broken": to("http://[::1/"),
        "/nowhere": answering(status=302),
        "/gone": answering(status=410),
        "/blank": b"<html><body></body></html>",
        "/deep": b"<div>" * 1000 + b"text",
        "/binary": bytes(range(128, 256)) * 30 + bytes(range(7)),
    }
    urls = [site.url(path) for path in site.pages]
    odd = (
        "ftp://127.0.0.1/f",
        "javascript:alert(1)",
        "http://[::1/b",
        "http://me:secret@127.0.0.1/c",
        "http://a b/d",
        "e",
    )
    documents, quarantined, _ = collected(source(*urls, *odd, timeout=0.7, max_bytes=100_000), tmp_path)
    assert [document.origin for document in documents] == [site.url("/good")]
    assert reasons(quarantined) == {
        "huge": "too_large",
        "endless": "too_large",
        "bomb": "too_large",
        "torn": "connection_lost",
        "br": "unknown_encoding",
        "dripping": "timeout",
        "slow": "timeout",
        "cut": "connection_lost",
        "image": "not_html",
        "loop": "too_many_redirects",
        "loop2": "too_many_redirects",
        "ftp": "not_http",
        "file": "not_http",
        "broken": "invalid_url",
        "nowhere": "http_302",
        "gone": "http_410",
        "blank": "no_text",
        "deep": "too_deep",
        "binary": "invalid_encoding",
        "f": "not_http",
        "javascript:alert(1)": "not_http",
        "b": "invalid_url",
        "c": "invalid_url",
        "d": "invalid_url",
        "e": "not_http",
    }
    before = len(site.requests)
    collected(source(*urls, *odd, timeout=0.7, max_bytes=100_000), tmp_path)
    again = {path for path, _, _ in site.requests[before:]}
    assert again == {"/robots.txt", "/torn", "/dripping", "/slow", "/cut"}  # what may pass


def test_a_host_that_falls_silent_is_given_up(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_MOST_MISSES", 2)
    site.pages |= {f"/{n}": hanging_up for n in range(5)}
    _, quarantined, _ = collected(source(*(site.url(f"/{n}") for n in range(5))), tmp_path)
    assert list(reasons(quarantined).values()) == ["connection_lost"] * 2 + ["host_given_up"] * 3


def test_encodings_come_from_the_header_the_page_or_the_bytes(tmp_path: Path, site: Site) -> None:
    text = "Čeština je západoslovanský jazyk, nejbližší slovenštině. " * 10
    page = "<html><head><meta charset='{}'></head><body><p>{}</p></body></html>"
    site.pages |= {
        "/header": answering(
            page.format("utf-8", text).encode("cp1250"), content_type="text/html; charset=windows-1250"
        ),
        "/meta": page.format("windows-1250", text).encode("cp1250"),
        "/lie": answering(page.format("latin1", text).encode(), content_type='text/html;charset="iso-8859-1"'),
        "/gzip": answering(gzip.compress(page.format("utf-8", text).encode()), Content_Encoding="gzip"),
    }
    documents, quarantined, _ = collected(source(*(site.url(path) for path in site.pages)), tmp_path)
    assert [document.text for document in documents] == [text.strip()] * 4 and not quarantined


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_without_a_network_the_user_is_told(tmp_path: Path, site: Site) -> None:
    dead = f"http://127.0.0.1:{closed_port()}/a"
    with pytest.raises(
        UserError, match=r"source 'web': no host could be reached, that of http://127.*check the network"
    ):
        collected(source(dead, "http://name.invalid/", "ftp://x/y"), tmp_path)
    site.pages["/1"] = html(1)
    documents, quarantined, _ = collected(source(dead, site.url("/1", "localhost")), tmp_path)
    assert len(documents) == 1 and reasons(quarantined) == {"a": "unreachable"}
    site.shutdown()
    assert collected(source(dead, site.url("/1", "localhost")), tmp_path)[0] == documents  # some pages are there


def test_lists_that_name_nothing_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    for urls, message in ((str(tmp_path / "none.txt"), "cannot read"), (str(tmp_path / "empty.txt"), "names no page")):
        with pytest.raises(UserError, match=message):
            collected(WebPages(urls=urls), tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "protego", None)
    with pytest.raises(UserError, match=r"a WebPages source needs the protego package: pip install -e '\.\[data\]'"):
        collected(source("http://a/"), tmp_path)


def test_parts_change_with_their_pages_and_not_with_the_date(tmp_path: Path, site: Site) -> None:
    site.pages |= {f"/{n}": html(n) for n in range(6)}
    wanted = source(*(site.url(f"/{n}") for n in range(6)))
    config = CollectionConfig(shard_bytes=1500)

    def states(folder: str) -> list[str]:
        return [part.state for part in collect.plan([wanted], config, tmp_path / folder)]

    first = states("a")
    assert len(first) > 1 and states("b") == first
    site.pages["/5"] = html(7)
    assert states("c")[:-1] == first[:-1] and states("c")[-1] != first[-1]


def test_an_error_of_ours_ends_the_run_at_once(
    tmp_path: Path, site: Site, other: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: dict[str, str]) -> None:
        if "localhost" in value["url"]:
            raise OSError(28, "No space left on device")

    other.pages["/1"] = html(1)
    monkeypatch.setattr(web_pages, "write_json", full)
    urls = [other.url("/1", "localhost"), *(site.url(f"/{n}") for n in range(40))]
    with pytest.raises(OSError, match="No space left"):
        collected(source(*urls, delay=0.1), tmp_path)
    assert len(site.requests) < 20
