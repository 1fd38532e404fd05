"""Servers that mean harm, or are out of order for a while."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_data_sources import collected
from test_data_web import html, reasons, source
from web_site import Handler, Site, answering, serving, to

from data_pipeline.sources import fetching


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as server:
        yield server


def test_a_server_out_of_order_is_asked_again_by_the_next_run(tmp_path: Path, site: Site) -> None:
    passing, lasting = (408, 425, 507, 509, 520, 524), (400, 401, 403, 404, 410, 451)
    site.pages |= {f"/{status}": answering(status=status) for status in passing + lasting}
    pages = source(*(site.url(path) for path in site.pages))
    _, quarantined, _ = collected(pages, tmp_path)
    assert reasons(quarantined) == {str(status): f"http_{status}" for status in passing + lasting}
    site.requests.clear()
    collected(pages, tmp_path)
    assert {path for path, _, _ in site.requests} == {"/robots.txt", *(f"/{status}" for status in passing)}


@pytest.mark.parametrize(
    ("host", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("169.254.169.254", False),
        ("10.1.2.3", False),
        ("localhost", False),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("fe80::1", False),
        ("name.invalid", False),
    ],
)
def test_public_addresses_are_known(host: str, public: bool) -> None:
    assert fetching.is_public(host) == public


def test_a_public_page_may_not_lead_into_a_private_network(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No public address can be had here, so 127.0.0.1 is taken for one."""
    real = fetching.is_public
    monkeypatch.setattr(fetching, "is_public", lambda host: host == "127.0.0.1" or real(host))
    site.pages |= {
        "/inside": html(1),
        "/in": to(site.url("/inside", "localhost")),
        "/about": to("/in"),
        "/out": to(site.url("/inside")),
        "/metadata": to("http://169.254.169.254/latest"),
    }
    documents, quarantined, _ = collected(
        source(
            *(site.url(path) for path in ("/in", "/about", "/metadata")),
            *(site.url(path, "localhost") for path in ("/inside", "/out")),
        ),
        tmp_path,
    )
    assert [document.id.rpartition("/")[2] for document in documents] == ["inside", "out"]
    assert reasons(quarantined) == dict.fromkeys(("in", "about", "metadata"), "private_address")


def test_headers_that_never_end_meet_the_deadline(tmp_path: Path, site: Site) -> None:
    def dripping(handler: Handler) -> None:
        handler.send_response(200)
        handler.flush_headers()
        for number in range(30):
            handler.wfile.write(f"X-{number}: y\r\n".encode())
            time.sleep(0.1)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def slowly(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 O")
        for _ in range(30):
            handler.wfile.write(b"K")
            time.sleep(0.1)

    site.pages |= {"/headers": dripping, "/status": slowly, "/good": html(1)}
    urls = [site.url(path) for path in ("/headers", "/status", "/good")]
    started = time.monotonic()
    documents, quarantined, _ = collected(source(*urls, timeout=0.5), tmp_path)
    assert time.monotonic() - started < 2.5
    assert reasons(quarantined) == {"headers": "timeout", "status": "timeout"} and len(documents) == 1
