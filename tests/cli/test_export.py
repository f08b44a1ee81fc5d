"""``gma export``: ONNX files that say what they are."""

import pytest
from command_line import FAST, gma


@pytest.mark.slow
def test_export_writes_files_that_say_what_they_are(tmp_path):
    from gma_lib.export.trace import read_description

    gma("export", "-o", tmp_path / "model", "--height", 128, "--width", 160, *FAST)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["gma.onnx"]
    assert read_description(tmp_path / "model" / "gma.onnx")["num_updates"] == "1"
    assert "not an empty folder" in gma(
        "export", "-o", tmp_path / "model", "--height", 128, "--width", 160, *FAST, exit_code=1
    )
    assert "multiples of 8" in gma(
        "export", "-o", tmp_path / "other", "--height", 130, "--width", 160, *FAST, exit_code=1
    )


@pytest.mark.parametrize(
    ("size", "said", "code"),
    [
        (("--height", 8192, "--width", 8192), "GB of memory", 1),
        (("--height", 128, "--width", 160, "--batch-size", 2**61), "4096", 2),
    ],
)
def test_sizes_that_no_machine_could_export(tmp_path, size, said, code):
    assert said in gma("export", "-o", tmp_path / "model", *size, *FAST, exit_code=code)
    assert not (tmp_path / "model").exists()
