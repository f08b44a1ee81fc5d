"""A worker reads its own copies, or what it was sent, and never other content."""

import errno
import os
import tempfile
from pathlib import Path

import pytest

from gma_lib.runs.files import hash_file
from gma_lib.runs.parcels import Lacking, place_files


@pytest.fixture
def files(tmp_path):
    """Two files of one name in two folders, with their digests."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_text(folder)
    return {path: hash_file(path) for path in sorted(tmp_path.rglob("*.png"))}


@pytest.fixture
def sent(files):
    return Lacking(files).read()


@pytest.mark.parametrize("given", [None, {}])
def test_own_copies_are_read_where_they_are(files, given):
    with place_files(files, given) as locate:
        assert [locate(path) for path in files] == [*files]


def test_what_is_nowhere_is_asked_for(files, sent):
    first, second = files
    second.unlink()
    with pytest.raises(Lacking) as lacking, place_files(files, {}):
        pass
    assert lacking.value.files == files
    with (
        pytest.raises(Lacking) as lacking,
        place_files(files, {digest: sent[digest] for digest in [files[first]]}),
    ):
        pass
    assert lacking.value.files == {second: files[second]}


def test_what_was_sent_is_read_from_a_folder_that_goes(files, sent):
    folder = next(iter(files)).parent
    for path in files:
        path.unlink()
    with place_files(files, sent) as locate:
        assert [locate(path).read_text() for path in files] == ["a", "b"]
        assert locate(folder) / "x.png" == locate(folder / "x.png")
        places = [locate(path) for path in files]
    assert not [path for path in (*files, *places) if path.exists()]


@pytest.mark.parametrize("left", [1, 2])  # of the worker's copies
def test_another_content_is_refused_by_both_hashes(files, sent, left):
    first, second = files
    first.write_text("other")
    if left == 1:
        second.unlink()
    both = rf"{first} has SHA-256 {hash_file(first)} on .*, and {files[first]} where"
    with pytest.raises(ValueError, match=both), place_files(files, sent):
        pass
    with place_files(files, None) as locate:  # of whoever gives the work, 01_data's digests decide
        assert locate(first) == first


def test_what_changed_on_its_way_is_refused(files, sent):
    for path in files:
        path.unlink()
    damaged = {digest: content + b"x" for digest, content in sent.items()}
    with pytest.raises(ValueError, match="SHA-256"), place_files(files, damaged):
        pass


@pytest.mark.parametrize(
    ("where", "what"), [(tempfile, "mkdtemp"), (Path, "mkdir"), (Path, "write_bytes")]
)
def test_a_full_disk_is_a_sentence(files, sent, monkeypatch, tmp_path, where, what):
    """That names the worker's folder, and leaves nothing there."""

    def refuse(path, *content, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    for path in files:
        path.unlink()
    (folder := tmp_path / "t").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(where, what, refuse)
    match = rf"worker .* in {folder} \(No space left.*make room"
    with pytest.raises(OSError, match=match) as refused, place_files(files, sent):
        pass
    assert len(str(refused.value).splitlines()) == 1
    assert not [*folder.iterdir()]
