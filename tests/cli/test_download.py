"""``gma download``: prints what make takes; a bad archive is moved aside and fetched again."""

import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from command_line import gma

from gma_lib.cli import download
from gma_lib.data import fetch
from gma_lib.runs.files import BadFile


def test_the_folder_is_what_make_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "download", lambda folder: folder / "MPI-Sintel-complete")
    answer = gma("download", tmp_path / "new")
    assert answer == f"SINTEL={tmp_path / 'new' / 'MPI-Sintel-complete'}\n"


def pack(files):
    with zipfile.ZipFile(content := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


GOOD = pack({"training/clean/alley_1/frame_0001.png": b"a frame"})


@pytest.fixture
def serve():
    """A server that gives one answer after the other: (content, promised length)."""
    answers = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content, length = answers.pop(0)
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def add(*contents, missing=0):
        answers.extend((content, len(content) + missing) for content in contents)
        return f"http://127.0.0.1:{server.server_port}/a.zip", answers

    yield add
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("first", "missing"), [(b"<html>Busy</html>", 0), (GOOD[:-30], 0), (GOOD[:-30], 30), (b"", 0)]
)
def test_a_bad_download_is_fetched_again(tmp_path, serve, first, missing):
    serve(first, missing=missing)
    url, _ = serve(GOOD)
    root = fetch.download(tmp_path, url=url, size=1000)
    assert (root / "training/clean/alley_1/frame_0001.png").read_bytes() == b"a frame"
    assert (tmp_path / "MPI-Sintel-complete.zip").read_bytes() == GOOD
    url, left = serve(GOOD)
    assert fetch.download(tmp_path, url=url, size=1000) == root
    assert len(left) == 1  # not asked again


def test_what_an_earlier_download_left_is_moved_aside(tmp_path, serve):
    (tmp_path / "MPI-Sintel-complete.zip").write_bytes(b"garbage")
    url, _ = serve(GOOD)
    assert fetch.download(tmp_path, url=url, size=1000).is_dir()
    assert (tmp_path / "MPI-Sintel-complete.damaged.zip").read_bytes() == b"garbage"


@pytest.mark.parametrize(
    "bomb",
    [
        pack({"a": bytes(10**6)}),
        pack({str(number): b"" for number in range(30)}),
        b"still garbage",
    ],
)
def test_an_archive_that_is_never_right_is_an_error_and_unpacks_nothing(
    tmp_path, serve, bomb, monkeypatch
):
    monkeypatch.setattr(fetch, "MOST_FILES", 20)
    url, _ = serve(bomb, bomb)
    with pytest.raises(BadFile, match=r"MPI-Sintel-complete\.zip"):
        fetch.download(tmp_path, url=url, size=1000)
    assert [path.name for path in tmp_path.iterdir()] == ["MPI-Sintel-complete.damaged.zip"]
