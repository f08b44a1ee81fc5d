"""A pair's files are those of the index while they are read."""

import shutil
from contextlib import nullcontext

import pytest

from gma_lib.data import pair as pair_module
from gma_lib.data.sintel import build_index, load_pairs
from gma_lib.flow.images import read_frame


@pytest.mark.parametrize("when", ["before", "while", "never"])
def test_a_frame_that_is_replaced_until_it_has_been_read_is_refused(tiny_sintel, monkeypatch, when):
    """The flow of the new frame would have the digest of the old one."""
    pair = load_pairs(build_index(tiny_sintel, description="tiny"))[0]
    other = shutil.copy(pair.image2, tiny_sintel / "other.png")

    def read(path):
        content = read_frame(path)
        if when == "while" and path == pair.image1:
            shutil.copy(other, path)
        return content

    if when == "before":
        shutil.copy(other, pair.image1)
    monkeypatch.setattr(pair_module, "read_frame", read)
    with nullcontext() if when == "never" else pytest.raises(ValueError, match="run 01_data"):
        pair.load_frames()
