"""The pages in a real browser, without a network: nothing is asked of other machines, nothing is
complained about, links lead somewhere.
"""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DEAD_PROXY = (
    "127.0.0.1:9"  # nobody listens: whatever is asked of another machine fails, and is in the log
)


@dataclass(frozen=True)
class Visit:
    """What a browser did with a page: requests the page made beyond its own file, lines on the
    console, the document it ended up with.
    """

    requests: set[str]
    console: list[str]
    document: str


@pytest.fixture(scope="module")
def visit(tmp_path_factory):
    """Open a page in a headless browser that has no network."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("needs Chromium")
    folder = tmp_path_factory.mktemp("browser")

    def open_page(page: Path) -> Visit:
        log = folder / "net.json"
        done = subprocess.run(
            [
                *(
                    browser,
                    "--headless",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--no-first-run",
                    "--enable-logging=stderr",
                ),
                *(
                    f"--user-data-dir={folder / 'profile'}",
                    f"--proxy-server={DEAD_PROXY}",
                    f"--log-net-log={log}",
                ),
                *("--virtual-time-budget=2000", "--dump-dom", page.resolve().as_uri()),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return Visit(requests_of_the_page(log.read_text()), console, done.stdout)

    return open_page


def requests_of_the_page(log: str) -> set[str]:
    """URLs that the page asked for. The browser's own requests (updates, the time) have no
    initiator.
    """
    try:
        events = json.loads(log)["events"]
    except json.JSONDecodeError:  # the browser ended before it closed the list
        events = json.loads(log.rstrip().rstrip(",") + "]}")["events"]
    asked = [event["params"] for event in events if "url" in event.get("params", {})]
    return {
        item["url"] for item in asked if item.get("initiator", "not an origin") != "not an origin"
    }


def test_the_visit_notices_what_is_wrong(visit, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        '<script src="https://example.org/a.js"></script><img src="http://example.org/b.png"><script>missing()</script>'
    )
    found = visit(page)
    assert found.requests == {"https://example.org/a.js", "http://example.org/b.png"}
    assert any("missing is not defined" in line for line in found.console)
    page.write_text("<p>nothing</p>")
    assert visit(page).requests == set()
    assert visit(page).console == []


def test_pages_open_without_a_network(visit, reported):
    for page in pages(reported):
        found = visit(page)
        assert found.requests == set(), page
        assert found.console == [], page
        assert page.stat().st_size < 5e6, page
        assert "</footer>" in found.document, page


def test_links_lead_somewhere(visit, reported):
    for page in pages(reported):
        document = visit(page).document
        for link in re.findall(r'<a [^>]*href="([^"]+)"', document):
            if link.startswith(("http:", "https:")):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / unquote(path)).resolve() if path else page
            assert target.is_file(), f"{page.name} links to {link}"
            if anchor and not path:
                assert f'id="{unquote(anchor)}"' in document, f"{page.name} links to {link}"


def pages(outputs: Path) -> list[Path]:
    found = sorted(outputs.rglob("*.html"))
    assert len(found) >= 12  # the index, 01, and five pages for each of two batch sizes
    return found
