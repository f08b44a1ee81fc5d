"""``gma download``: prints what make takes."""

from command_line import gma

from gma_lib.cli import download


def test_the_folder_is_what_make_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "download", lambda folder: folder / "MPI-Sintel-complete")
    answer = gma("download", tmp_path / "new")
    assert answer == f"SINTEL={tmp_path / 'new' / 'MPI-Sintel-complete'}\n"
