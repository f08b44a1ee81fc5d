"""The pages in a real browser, without a network: nothing is asked of other machines, nothing is
complained about, links lead somewhere.
"""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from conftest import record_flow

from gma_lib.data.sintel import find_pairs
from gma_lib.flow.files import write_flow
from gma_lib.infer.inference import flow_path
from gma_lib.report.pages import TEMPLATES, table_to_html
from gma_lib.report.viewer import write_viewer
from gma_lib.runs.run import Run

pytestmark = pytest.mark.exhaustive

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DEAD_PROXY = (
    "127.0.0.1:9"  # nobody listens: whatever is asked of another machine fails, and is in the log
)
# On the page's own clock, which jumps from timer to timer while other threads decode pictures: on a
# busy machine 9 s of it were over before the viewer had opened.
MILLISECONDS = 600_000


@dataclass(frozen=True)
class Visit:
    """What a browser did with a page: requests the page made beyond its own file, lines on the
    console, the document it ended up with.
    """

    requests: set[str]
    console: list[str]
    document: str


@pytest.fixture(scope="module")
def browser():
    """The browser's command."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("needs Chromium")
    return found


@pytest.fixture(scope="module")
def visit(browser, tmp_path_factory):
    """Open a page in a headless browser that has no network."""
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
                *(f"--virtual-time-budget={MILLISECONDS}", "--dump-dom", page.resolve().as_uri()),
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
            if link.startswith(("http:", "https:", "data:")):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / unquote(path)).resolve() if path else page
            assert target.is_file(), f"{page.name} links to {link}"
            if anchor and not path:
                assert f'id="{unquote(anchor)}"' in document, f"{page.name} links to {link}"


SORT = """<script>
const heads = [...document.querySelectorAll("th[aria-sort]")], read = [];
const texts = (names) => [...document.querySelectorAll(names)].map((one) => one.textContent);
const order = () => texts("tbody th").join("");
heads[0].click(); read.push(order(), heads[0].getAttribute("aria-sort"));
heads[0].dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" })); read.push(order());
heads[1]?.click(); read.push(order(), heads[0].getAttribute("aria-sort"));
document.body.setAttribute("data-read", read.join(" "));
</script>"""


def test_a_click_on_a_header_sorts_the_rows(visit, tmp_path):
    values = {"pixels": [9.0, 1000.0, float("nan")], "scene": ["c", "a", "b"]}
    table = table_to_html(pd.DataFrame(values, index=["x", "y", "z"]), missing="none")
    page = tmp_path / "page.html"
    script = (TEMPLATES / "tables.js").read_text()
    page.write_text(f"<body>{table}<script>{script}</script>{SORT}")
    read = re.search('data-read="([^"]+)"', visit(page).document)[1]
    assert read == "xyz ascending yxz yzx none"


def test_rows_that_share_a_header_are_sorted_with_it(visit, tmp_path):
    rows = [("clean", "all"), ("clean", "slow"), ("final", "all"), ("final", "slow")]
    table = pd.DataFrame({"EPE": [4.0, 3.0, 2.0, 1.0]}, index=pd.MultiIndex.from_tuples(rows))
    page = tmp_path / "page.html"
    script = (TEMPLATES / "tables.js").read_text()
    page.write_text(f"<body>{table_to_html(table)}<script>{script}</script>{SORT}")
    read = re.search('data-read="([^"]+)"', visit(page).document)[1]
    ascending = "finalslowfinalallcleanslowcleanall"
    assert read.split()[:3] == [ascending, "ascending", "cleanallcleanslowfinalallfinalslow"]


def test_what_scrolls_can_be_reached_with_the_keyboard(visit, tmp_path):
    narrow = 'style="width: 9em; overflow-x: auto"'
    table = table_to_html(pd.DataFrame({"w" * 40: [1.0]}), "Scores")
    script = (TEMPLATES / "scrolling.js").read_text()
    page = tmp_path / "page.html"
    boxes = f"<div {narrow}>{table}</div><pre {narrow}>{'long ' * 9}</pre><pre {narrow}>short</pre>"
    page.write_text(f"<body><main>{boxes}</main><script>{script}</script>")
    found = visit(page)
    assert found.console == []
    boxes = re.findall(r'<(div|pre) style="[^"]*"([^>]*)>', found.document)
    assert [(tag, re.findall('([a-z-]+)="([^"]*)"', given)[:3]) for tag, given in boxes] == [
        ("div", [("tabindex", "0"), ("role", "group"), ("aria-label", "Scores, scrolls")]),
        ("pre", [("tabindex", "0"), ("role", "group"), ("aria-label", "code or text, scrolls")]),
        ("pre", []),
    ]


def test_a_printed_picture_or_table_is_on_one_page(browser, tmp_path):
    """A phone's tall picture was cut in four, a table's head was left behind by its rows."""
    style = re.search("<style>.*?</style>", (TEMPLATES / "index.html.j2").read_text(), re.S)[0]
    picture = escape('<svg xmlns="http://www.w3.org/2000/svg" width="600" height="4000"/>')
    page, printed = tmp_path / "page.html", tmp_path / "page.pdf"
    table = table_to_html(pd.DataFrame({"EPE": np.arange(10.0)}))
    full = '<p style="height: 23cm">'  # leaves room for the table's head, and no more
    page.write_text(f'{style}{full}</p>{table}<img src="data:image/svg+xml,{picture}">')
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    whole = [*command, profile, f"--print-to-pdf={printed}", page.as_uri()]
    subprocess.run(whole, check=True, capture_output=True, timeout=120)
    assert len(re.findall(rb"/Type /Page\b", printed.read_bytes())) == 3


HOVER = """<script>
const put = (text) => document.body.setAttribute("data-read", text), read = [];
const wait = setInterval(() => {
  if (document.getElementById("viewer").hidden) return;
  clearInterval(wait);
  const view = document.getElementById("view"), box = view.getBoundingClientRect();
  for (const [x, y] of PIXELS) {
    const clientX = box.left + (x + 0.5) * box.width / 160;
    const clientY = box.top + (y + 0.5) * box.height / 128;
    view.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY }));
    const told = (id) => document.getElementById(id).textContent;
    read.push(["pixel", "truth", "flow", "error"].map(told));
  }
  put(JSON.stringify(read));
}, 20);
</script>"""


def test_hovering_over_a_pixel_reads_its_flow_and_error(visit, tiny_sintel, tmp_path):
    rng, run = np.random.default_rng(0), make_run(tmp_path / "out of a zip")
    pairs = find_pairs(tiny_sintel)[:2]
    flow = rng.normal(0, 20, (2, 128, 160)).astype(np.float32)
    for pair in pairs:
        write_flow(flow_path(run.flow_folder, pair), flow)
    stored = record_flow(pairs, run.flow_folder)
    page = write_viewer(run, stored, {"best": pairs[0]}, pairs, most=2, num_updates=6)
    pixels = [[0, 0], [159, 127], [3, 90], [100, 5], [80, 64]]
    page.write_text(page.read_text().replace("</body>", HOVER.replace("PIXELS", str(pixels))))
    found = visit(page)
    assert found.requests == set()
    assert found.console == []
    read = re.search(r'data-read="([^"]*)"', found.document)
    assert read, "the viewer did not open"
    told = json.loads(unescape(read[1]))
    for (x, y), (pixel, truth, computed, error) in zip(pixels, told, strict=True):
        assert pixel == f"{x}, {y}" + " (occluded)" * (x < 16)
        assert truth == "3.00, 4.00"
        u, v = map(float, computed.split(", "))
        assert (u, v) == pytest.approx(tuple(flow[:, y, x]), abs=0.0101)
        exact = np.hypot(*(flow[:, y, x] - (3, 4)))
        assert float(error.removesuffix(" px")) == pytest.approx(exact, abs=0.0151)


def test_within_jupyterlab_only_embedded_pairs_are_offered(visit, tiny_sintel, tmp_path):
    """As there, the page is an attribute of a frame, and its files are out of reach."""
    run, pairs = make_run(tmp_path), find_pairs(tiny_sintel)[:3]
    for pair in pairs:
        write_flow(flow_path(run.flow_folder, pair), np.zeros((2, 128, 160), np.float32))
    stored = record_flow(pairs, run.flow_folder)
    viewer = write_viewer(run, stored, {"best": pairs[0]}, pairs, most=3, num_updates=6)
    page, read = (
        tmp_path / "notebook.html",
        (
            "<script>onload = () => setTimeout(() => document.body.setAttribute('data-read', "
            "frames[0].document.getElementById('pair').length), 500)</script>"
        ),
    )
    page.write_text(f'<body><iframe srcdoc="{escape(viewer.read_text())}"></iframe>{read}')
    found = visit(page)
    assert found.console == []
    assert 'data-read="1"' in found.document


CHOOSE = """<script>
const $ = (id) => document.getElementById(id), read = [], held = [];
const pause = () => new Promise((done) => setTimeout(done, 200));
const opened = async () => { do await pause(); while ($("told").textContent === "Opening …"); };
const choose = (place) => {
  $("pair").value = place;
  $("pair").dispatchEvent(new Event("change"));
};
const append = document.head.append.bind(document.head);
const tell = () => {
  const box = $("view").getBoundingClientRect();
  const clientX = box.left + box.width / 2, clientY = box.top + box.height / 2;
  $("view").dispatchEvent(new PointerEvent("pointermove", { clientX, clientY }));
  const left = document.querySelector("#layers [aria-pressed=true]").value;
  const told = $("told").textContent.includes("viewer/3.js") ? "missing" : $("told").textContent;
  read.push([$("pair").selectedIndex, parseFloat($("flow").textContent), left, told]);
};
(async () => {
  await opened();
  document.head.append = (script) => held.push(script);
  choose(1); choose(2);  // the file that was asked for first arrives first
  append(held.shift()); await pause(); append(held.shift());
  await opened(); tell();
  choose(1); choose(0); await opened();
  append(held.shift()); await pause(); tell();  // a file arrives that nobody waits for
  document.head.append = append;
  choose(2); document.querySelector("#layers [value=occlusion]").click();
  await opened(); choose(4); await opened(); tell();  // it has no mask
  choose(3); await opened(); tell();  // its file is not there
  document.body.setAttribute("data-read", JSON.stringify(read));
})();
</script>"""


def test_a_pair_is_shown_under_its_own_name(visit, tiny_sintel, tmp_path):
    """Whatever arrives first, last, or not at all."""
    pairs = find_pairs(tiny_sintel) + find_pairs(tiny_sintel, pass_name="final")[2:3]
    run = make_run(tmp_path)
    for number, pair in enumerate(pairs):
        write_flow(flow_path(run.flow_folder, pair), np.full((2, 128, 160), number, np.float32))
    others = [pairs[place] for place in (1, 2, 4, 3)]  # the last has neither truth nor mask
    stored = record_flow(pairs, run.flow_folder)
    page = write_viewer(run, stored, {"best": pairs[0]}, others, most=4, num_updates=6)
    (run.folder / "viewer/3.js").unlink()
    page.write_text(page.read_text().replace("</body>", CHOOSE))
    read = re.search(r'data-read="([^"]*)"', visit(page).document)
    assert read, "the viewer did not open"
    assert json.loads(unescape(read[1])) == [
        [2, 2, "computed flow", ""],
        [0, 0, "computed flow", ""],
        [4, 3, "computed flow", ""],
        [4, 3, "computed flow", "missing"],
    ]


def make_run(outputs: Path) -> Run:
    return Run(outputs, "tiny", "openvino", "float32", 2, "test")


def pages(outputs: Path) -> list[Path]:
    found = sorted(outputs.rglob("*.html"))
    assert len(found) >= 12  # the index, 01, and five pages for each of two batch sizes
    return found
