"""Tensor files hold what the guide's own preprocessing wrote."""

import hashlib
import json

import numpy as np
import pytest

from gma_lib.data import sintel
from gma_lib.data.guide_tensors import (
    number_pairs,
    read_tensor,
    remove_guide_tensors,
    write_guide_tensors,
    write_tensor,
)
from gma_lib.flow.images import read_frame


def test_the_guides_tensors(pairs, tmp_path):
    folder = tmp_path / "tensors"
    numbers = write_guide_tensors(pairs, folder, plain_names=True)
    assert numbers == json.loads((folder / "pairs.json").read_text())
    assert numbers["final/alley/frame_0001"] == "0"
    found = read_tensor(folder / "final/image1/0.bin", (1, 3, 128, 160))[0]
    np.testing.assert_array_equal(found, read_frame(pairs[4].image1))
    assert read_tensor(folder / "clean/gt/0.bin", (128, 160, 2))[0, 0].tolist() == [3, 4]
    assert sorted(path.stem for path in (folder / "clean/gt").iterdir()) == ["0", "1", "2"]


def list_files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "change",
    [
        {"pairs": slice(0, 1)},  # fewer frames, and one pass
        {"with_truth": False},  # as of the test split
        {"plain_names": True},
    ],
    ids=["fewer", "without truth", "plain names"],
)
def test_nothing_of_an_earlier_set_is_left_beside_a_new_one(pairs, tmp_path, change):
    """Whoever reads the folder would pair new frames with old truth."""
    many = pairs[:1] * 3 + pairs
    many = [
        sintel.FramePair(one.pass_name, f"{number}", 1, one.image1, one.image2, one.flow)
        for number, one in enumerate(many * 2)
    ]
    write_guide_tensors(many, tmp_path / "used")
    (tmp_path / "used" / "clean" / "gt" / "mine.bin").write_bytes(b"mine")
    change = dict(change)
    few = many[change.pop("pairs", slice(None))]
    write_guide_tensors(few, tmp_path / "used", **change)
    write_guide_tensors(few, tmp_path / "new", **change)
    assert list_files(tmp_path / "used") == list_files(tmp_path / "new") | {"clean/gt/mine.bin"}
    remove_guide_tensors(tmp_path / "used")
    assert list_files(tmp_path / "used") == {"clean/gt/mine.bin"}


def test_many_pairs_get_stems_of_one_length(pairs):
    """1041 pairs are numbered 0000 to 1040: then sorting by name and by number agree."""
    many = [sintel.FramePair("clean", "scene", number, None, None) for number in range(1041)]
    stems = list(number_pairs(many).values())
    assert (stems[0], stems[-1]) == ("0000", "1040")
    assert stems == sorted(stems)
    plain = list(number_pairs(many, plain=True).values())
    assert (plain[0], plain[-1]) == ("0", "1040")


def test_the_guides_tensors_byte_for_byte(sintel_sample, tmp_path):
    """Hashes of what the guide's own preprocessing wrote for frames 2 and 3 of both scenes, clean
    pass.
    """
    pairs = [pair for pair in sintel.find_pairs(sintel_sample) if pair.number == 2]
    write_guide_tensors(pairs, tmp_path)
    folder = tmp_path / "clean"
    hashes = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.bin")
    }
    assert hashes == {
        "gt/0.bin": "22897c9919ac44f82b7460a1c3f2f87ec45775087ac21ef96373358efbc442a3",
        "gt/1.bin": "c927a1511c30296046f4816defe4a31af661782fa432bedeaf4a3c77b5c712ed",
        "image1/0.bin": "a8098aaefb8f8c2e8e613f46e9d68a09c9f79d82b65075dc9efcbba27596fb6f",
        "image1/1.bin": "b51865cafc527d9fbe3b406889c8264a969ef99e20455e04be4b6af17425f3d2",
        "image2/0.bin": "792bbb4215421eef97249e680b04aef457a2f82a2da9712fb3c99e1006ce7ed3",
        "image2/1.bin": "d7f733e7504ab2ddcecd92d820a93962c09d60c33a8c0206695186fc67b25197",
    }


def test_tensor_of_another_size_is_an_error(tmp_path):
    write_tensor(tmp_path / "a.bin", np.zeros((2, 3)))
    assert read_tensor(tmp_path / "a.bin", (2, 3)).shape == (2, 3)
    with pytest.raises(ValueError, match="24 bytes where"):
        read_tensor(tmp_path / "a.bin", (2, 4))
