"""Downloads against a server of one's own that cuts, stalls, lies, redirects and sends garbage."""

import http.client
import io
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
import urllib3
from command_line import gma

from gma_lib.data import fetch
from gma_lib.runs.files import BadFile


def pack(files, **options):
    with zipfile.ZipFile(content := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data, **options)
    return content.getvalue()


FRAME = "training/clean/alley_1/frame_0001.png"
DATA = random.Random(0).randbytes(300_000)
GOOD = pack({FRAME: DATA, "README.txt": b"read me"})
OTHER = pack({FRAME: DATA[::-1], "README.txt": b"read me"})
HTML = b"<html>Busy</html>"


@dataclass
class Answer:
    """What the server sends once.

    Attributes
    ----------
    cut, stall
        After how many bytes it closes the connection, or says nothing for half a second.
    promised
        The length it claims, if not the true one; -1: none.
    ranges
        Whether it knows ranges, and the tag it gives the content.
    """

    content: bytes = GOOD
    status: int = 200
    cut: int | None = None
    stall: int | None = None
    promised: int | None = None
    ranges: bool = True
    tag: str | None = '"1"'
    start_off: int = 0
    headers: dict = field(default_factory=dict)


class Handler(BaseHTTPRequestHandler):
    """Gives one of the server's answers after the other."""

    def do_GET(self):
        self.server.asked.append(self.headers.get("Range"))
        answer = self.server.answers.pop(0)
        start = self.find_start(answer)
        content = answer.content[start:]
        if start and not content:
            self.send_error(http.client.REQUESTED_RANGE_NOT_SATISFIABLE)
            return
        self.send_response(206 if start else answer.status)
        if start:
            begin, size = start + answer.start_off, len(answer.content)
            self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
        if answer.tag:
            self.send_header("ETag", answer.tag)
        length = len(content) if answer.promised is None else answer.promised - start
        if length >= 0:
            self.send_header("Content-Length", str(length))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: answer.cut if answer.stall is None else answer.stall])
        if answer.stall is not None:
            time.sleep(0.5)

    def find_start(self, answer):
        wanted = self.headers.get("If-Range", answer.tag)
        if not answer.ranges or "Range" not in self.headers or wanted != answer.tag:
            return 0
        return int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))

    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve(monkeypatch):
    """Add answers of a server; returns its address and the Range of each request so far."""
    monkeypatch.setattr(fetch, "SECONDS_BETWEEN_TRIES", 0.0)
    monkeypatch.setattr(fetch, "SECONDS", 5.0)  # longer than a busy machine needs to answer
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers, server.asked = [], []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def add(*more):
        server.answers.extend(more)
        return [f"http://127.0.0.1:{server.server_port}/a.zip"], server.asked

    yield add
    server.shutdown()
    server.server_close()


def read(root):
    return (root / FRAME).read_bytes()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_command_prints_what_make_takes(tmp_path, serve, monkeypatch):
    urls, _ = serve(Answer())
    monkeypatch.setitem(fetch.fetch_sintel.__kwdefaults__, "urls", urls)
    answer = gma("data", "sintel", tmp_path / "new")
    assert answer.splitlines()[-1] == f"SINTEL={tmp_path / 'new' / 'MPI-Sintel-complete'}"
    assert read(tmp_path / "new" / "MPI-Sintel-complete") == DATA


def test_a_relative_folder_is_named_as_a_whole(tmp_path, serve, monkeypatch):
    """make starts at the project, wherever the command was called."""
    urls, _ = serve(Answer())
    monkeypatch.chdir(tmp_path)
    assert fetch.fetch_sintel(Path("new"), urls=urls) == tmp_path / "new" / "MPI-Sintel-complete"


HALF = len(GOOD) // 2
INTERRUPTIONS = {
    "cut": Answer(cut=HALF),
    "cut, by a server without tags": Answer(cut=HALF, tag=None),
    "stalled": Answer(stall=HALF),
}


@pytest.mark.parametrize("first", INTERRUPTIONS.values(), ids=INTERRUPTIONS)
def test_what_came_is_not_asked_for_again(tmp_path, serve, first, monkeypatch):
    if first.stall is not None:
        monkeypatch.setattr(fetch, "SECONDS", 0.2)
    urls, asked = serve(first, Answer(tag=first.tag))
    assert read(fetch.fetch_sintel(tmp_path, urls=urls)) == DATA
    assert asked == [None, f"bytes={HALF}-"]


LIES = {
    "ignores ranges": [Answer(cut=HALF), Answer(ranges=False)],
    "has another file since": [Answer(OTHER, cut=HALF, tag='"0"'), Answer()],
    "sends another part": [Answer(cut=HALF), Answer(start_off=7), Answer()],
    "promises more": [Answer(promised=len(GOOD) + 30), Answer(), Answer()],
    "promises less": [Answer(promised=HALF), Answer()],
    "had a longer file": [
        Answer(GOOD + b"x" * 9, cut=len(GOOD) + 5, tag=None),
        Answer(tag=None),
        Answer(tag=None),
    ],
    "is busy": [Answer(HTML, 503), Answer()],
    "sends a web page": [Answer(HTML, headers={"Content-Type": "text/html"}), Answer()],
    "sends a web page as a file": [Answer(HTML), Answer()],
    "sends nothing": [Answer(b""), Answer()],
    "sends half as all": [Answer(GOOD[:HALF]), Answer()],
    "does not say how much": [Answer(promised=-1)],
    "sends another archive": [Answer(pack({"README.txt": b"read me"})), Answer(tag='"2"')],
    "sends an entry in a file": [Answer(pack({FRAME: DATA, "a": b"", "a/b": b""})), Answer()],
    "sends damage": [Answer(GOOD[:HALF] + b"?" + GOOD[HALF + 1 :]), Answer()],
}


@pytest.mark.parametrize("answers", LIES.values(), ids=LIES)
def test_a_server_that_lies_is_asked_until_all_is_right(tmp_path, serve, answers):
    urls, asked = serve(*answers)
    root = fetch.fetch_sintel(tmp_path, urls=urls)
    assert read(root) == DATA
    assert (tmp_path / "MPI-Sintel-complete.zip").read_bytes() == GOOD
    count = len(asked)
    assert fetch.fetch_sintel(tmp_path, urls=urls) == root
    assert len(asked) == count <= len(answers)


def test_redirects_are_followed(tmp_path, serve):
    urls, asked = serve()
    serve(Answer(HTML, 302, headers={"Location": urls[0] + "?2"}), Answer())
    assert read(fetch.fetch_sintel(tmp_path, urls=urls)) == DATA
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("asked", "answered", "is_refused"),
    [("https", "http", True), ("https", "https", False), ("http", "https", False)],
)
def test_a_file_asked_for_with_https_does_not_come_without(
    tmp_path, monkeypatch, asked, answered, is_refused
):
    """Whoever sits between could have changed it."""
    answer = requests.Response()
    answer.status_code, answer.url = 200, f"{answered}://other/a.zip"
    answer.headers["Content-Length"] = str(len(GOOD))
    answer.raw = urllib3.HTTPResponse(io.BytesIO(GOOD), preload_content=False)
    monkeypatch.setattr(fetch.requests, "get", lambda *_, **__: answer)
    if is_refused:
        with pytest.raises(BadFile, match=f"{answered}://other"):
            fetch.fetch_file(f"{asked}://one/a.zip", tmp_path / "a.zip")
        assert names(tmp_path) == []
    else:
        fetch.fetch_file(f"{asked}://one/a.zip", tmp_path / "a.zip")
        assert (tmp_path / "a.zip").read_bytes() == GOOD


REFUSED = {
    "absent": [Answer(HTML, 404)],
    "cut without a byte": [Answer(cut=0)] * fetch.TRIES,
    "a circle": [Answer(HTML, 302, headers={"Location": "/a.zip"})] * 31 * fetch.TRIES,
}


@pytest.mark.parametrize("answers", REFUSED.values(), ids=REFUSED)
def test_a_server_that_refuses_is_an_error_with_its_address(tmp_path, serve, answers):
    urls, _ = serve(*answers)
    with pytest.raises(OSError, match=urls[0]) as error:
        fetch.fetch_sintel(tmp_path, urls=urls)
    assert "\n" not in str(error.value)
    assert "MPI-Sintel-complete.zip" not in names(tmp_path)


def test_the_next_address_is_tried(tmp_path, serve):
    urls, _ = serve(Answer())
    assert read(fetch.fetch_sintel(tmp_path, urls=["https://127.0.0.1:9/a.zip", *urls])) == DATA


def test_what_an_earlier_download_left_is_moved_aside(tmp_path, serve):
    (tmp_path / "MPI-Sintel-complete.zip").write_bytes(b"garbage")
    urls, _ = serve(Answer())
    assert fetch.fetch_sintel(tmp_path, urls=urls).is_dir()
    assert (tmp_path / "MPI-Sintel-complete.damaged.zip").read_bytes() == b"garbage"


@pytest.mark.parametrize("later", [GOOD, OTHER], ids=["the same", "another"])
def test_a_later_download_is_compared_with_the_first(tmp_path, serve, later):
    urls, _ = serve(Answer())
    root = fetch.fetch_sintel(tmp_path, urls=urls)
    (tmp_path / "MPI-Sintel-complete.zip").unlink()
    root.rename(tmp_path / "first")
    serve(Answer(later), Answer(later))
    if later == GOOD:
        assert read(fetch.fetch_sintel(tmp_path, urls=urls)) == DATA
    else:
        with pytest.raises(BadFile, match="SHA-256"):
            fetch.fetch_sintel(tmp_path, urls=urls)
        assert not root.exists()


BOMBS = {
    "large": pack({"a": bytes(10**6)}),
    "many": pack({str(number): b"" for number in range(30)}),
    "empty": pack({}),
    "outside": pack({"../a": DATA}),
    "absolute": pack({"/tmp/a": DATA}),
    "garbage": b"still garbage",
    "without frames": pack({"training/clean/README.txt": DATA}),
    "in a file": pack({FRAME: DATA, "a": b"", "a/b": b""}),
    "a long name": pack({FRAME: DATA, 300 * "a": b""}),
    "no file of it is whole": GOOD.replace(DATA[1000:1010], bytes(10)),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_an_archive_that_is_never_right_is_an_error(tmp_path, serve, bomb, monkeypatch):
    monkeypatch.setattr(fetch, "MOST_FILES", 20)
    urls, _ = serve(Answer(bomb), Answer(bomb))
    with pytest.raises(BadFile, match=r"MPI-Sintel-complete\.zip"):
        fetch.fetch_sintel(tmp_path / "data", urls=urls)
    assert names(tmp_path) == ["data"]
    left = names(tmp_path / "data")
    assert "MPI-Sintel-complete.damaged.zip" in left
    assert not {f"MPI-Sintel-complete{end}" for end in ("", ".zip", ".partial")} & set(left)
    serve(Answer(tag='"2"'))  # its publisher has mended it
    assert read(fetch.fetch_sintel(tmp_path / "data", urls=urls)) == DATA


def test_no_room_is_said_before_a_byte_is_written(tmp_path, serve, monkeypatch):
    monkeypatch.setattr(fetch, "MOST_BYTES", 10**16)
    urls, _ = serve(Answer(promised=10**15))
    with pytest.raises(OSError, match=r"needs .* MB"):
        fetch.fetch_sintel(tmp_path, urls=urls)
    assert not (tmp_path / "MPI-Sintel-complete.zip.partial").exists()


def test_room_is_asked_for_where_no_length_is_known(tmp_path, serve, monkeypatch):
    monkeypatch.setattr(fetch, "ARCHIVE_BYTES", 10**15)
    urls, _ = serve(Answer(promised=-1))
    with pytest.raises(OSError, match=r"needs .* MB"):
        fetch.fetch_sintel(tmp_path, urls=urls)
    assert not (tmp_path / "MPI-Sintel-complete.zip.partial").exists()


def test_a_server_that_does_not_end_is_refused(tmp_path, serve, monkeypatch):
    monkeypatch.setattr(fetch, "MOST_BYTES", 200_000)
    monkeypatch.setattr(fetch, "BLOCK", 10_000)
    urls, asked = serve(Answer(promised=-1))
    with pytest.raises(OSError, match="more than 200,000 bytes"):
        fetch.fetch_sintel(tmp_path, urls=urls)
    assert (tmp_path / "MPI-Sintel-complete.zip.partial").stat().st_size == 0
    assert len(asked) == 1


def test_a_length_that_is_too_large_is_refused_at_once(tmp_path, serve, monkeypatch):
    monkeypatch.setattr(fetch, "MOST_BYTES", len(DATA) - 1)
    urls, asked = serve(Answer())
    with pytest.raises(OSError, match="more than"):
        fetch.fetch_sintel(tmp_path, urls=urls)
    assert len(asked) == 1


def test_a_disk_that_fills_up_names_the_file_and_goes_on_later(tmp_path, serve):
    import resource

    urls, asked = serve(Answer(), Answer())
    process = multiprocessing.get_context("fork").Process(
        target=lambda: (
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
            fetch.fetch_sintel(tmp_path, urls=urls),
        )
    )
    process.start()
    process.join()
    assert process.exitcode == 1
    assert read(fetch.fetch_sintel(tmp_path, urls=urls)) == DATA
    assert asked == [None, "bytes=100000-"]


def test_a_killed_unpacking_goes_on(tmp_path):
    scene = "training/clean/alley_1"
    content = pack({f"{scene}/frame_{number:04d}.png": DATA[:1000] for number in range(50)})
    archive, root = tmp_path / "a.zip", tmp_path / "a"
    archive.write_bytes(content)

    def die(items, **labels):
        for number, item in enumerate(items):
            if number == 20:
                os.kill(os.getpid(), signal.SIGKILL)
            yield item

    process = multiprocessing.get_context("fork").Process(
        target=fetch.unpack, args=(archive, root), kwargs={"track": die}
    )
    process.start()
    process.join()
    partial = tmp_path / "a.partial"
    assert not root.exists()
    assert len(names(partial / scene)) == 20
    # the right size, the wrong content
    (partial / scene / "frame_0003.png").write_bytes(bytes(1000))
    (partial / scene / "frame_0004.png").write_bytes(DATA[:500])
    again = []
    fetch.unpack(archive, root, track=lambda items, **labels: again.extend(items) or items)
    assert len(again) == 32
    assert {path.read_bytes() for path in (root / scene).iterdir()} == {DATA[:1000]}
    assert not partial.exists()


def test_only_one_process_fetches(tmp_path):
    with (
        fetch.lock_path(tmp_path / "MPI-Sintel-complete.lock"),
        pytest.raises(ValueError, match="another process"),
    ):
        fetch.fetch_sintel(tmp_path, urls=[])


def test_an_archive_brought_by_hand_is_compared_with_the_first_download(serve, tmp_path):
    urls, _ = serve(Answer(), Answer())
    root = fetch.fetch_sintel(tmp_path, urls=urls)
    shutil.rmtree(root)
    (tmp_path / "MPI-Sintel-complete.zip").write_bytes(OTHER)
    assert read(fetch.fetch_sintel(tmp_path, urls=urls)) == DATA
    assert (tmp_path / "MPI-Sintel-complete.different").read_bytes() == OTHER


def test_a_folder_without_frames_is_no_data_set(serve, tmp_path):
    urls, asked = serve()
    (tmp_path / "MPI-Sintel-complete" / "training").mkdir(parents=True)
    with pytest.raises(BadFile, match="no frames"):
        fetch.fetch_sintel(tmp_path, urls=urls)
    assert not asked


def test_a_link_where_it_unpacks_is_no_fault_of_the_archive(serve, tmp_path):
    urls, asked = serve()
    archive = tmp_path / "MPI-Sintel-complete.zip"
    archive.write_bytes(GOOD)
    (tmp_path / "disk").mkdir()
    link = tmp_path / "MPI-Sintel-complete.partial"
    link.symlink_to(tmp_path / "disk")
    with pytest.raises(BadFile, match="a link"):
        fetch.fetch_sintel(tmp_path, urls=urls)
    assert archive.read_bytes() == GOOD
    assert not asked
    link.unlink()
    assert read(fetch.fetch_sintel(tmp_path, urls=urls)) == DATA


def test_a_folder_that_lacks_files_of_its_archive_is_not_the_data_set(serve, tmp_path):
    """As unpacking by hand leaves it when it is interrupted."""
    urls, asked = serve(Answer())
    root = fetch.fetch_sintel(tmp_path, urls=urls)
    (root / "README.txt").write_bytes(b"read")  # a user's own business
    assert read(fetch.fetch_sintel(tmp_path, urls=urls)) == DATA
    for damaged in (DATA[:-1], DATA[:-1] + bytes([DATA[-1] ^ 1])):
        (root / FRAME).write_bytes(damaged)
        with pytest.raises(BadFile, match=FRAME):
            fetch.fetch_sintel(tmp_path, urls=urls)
    assert len(asked) == 1
    shutil.rmtree(root)
    assert read(fetch.fetch_sintel(tmp_path, urls=urls)) == DATA


@pytest.mark.parametrize("pairs", [3, 4])
def test_without_the_archive_the_pairs_are_counted(
    serve, tmp_path, tiny_sintel, pairs, monkeypatch
):
    urls, _ = serve()
    monkeypatch.setattr(fetch, "PAIRS_IN_TRAINING_SPLIT", pairs)
    root = tiny_sintel.rename(tmp_path / "MPI-Sintel-complete")
    if pairs == 3:
        assert fetch.fetch_sintel(tmp_path, urls=urls) == root
    else:
        with pytest.raises(BadFile, match="3 pairs"):
            fetch.fetch_sintel(tmp_path, urls=urls)


def test_nothing_is_unpacked_through_a_link(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    archive, root = tmp_path / "a.zip", tmp_path / "a"
    archive.write_bytes(GOOD)
    (tmp_path / "a.partial").mkdir()
    (tmp_path / "a.partial" / "training").symlink_to(elsewhere)
    with pytest.raises(BadFile, match="training"):
        fetch.unpack(archive, root)
    assert not list(elsewhere.iterdir())
