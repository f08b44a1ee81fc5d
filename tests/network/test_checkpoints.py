"""Weights are loaded strictly, from every form in which they are published."""

import pytest
import torch
from safetensors.torch import save_file

from gma_lib.network import checkpoints
from gma_lib.runs.files import BadFile


@pytest.fixture(scope="module")
def state():
    return checkpoints.make_seeded_weights()


def equal(found, state):
    return set(found) == set(state) and all(torch.equal(found[name], state[name]) for name in state)


def test_official_file(tmp_path, state):
    """As the authors save theirs, from ``DataParallel``."""
    path = tmp_path / "gma-sintel.pth"
    torch.save({f"module.{name}": value for name, value in state.items()}, path)
    loaded = checkpoints.load_checkpoint(path)
    assert equal(loaded.state, state)
    assert loaded.name == "gma-sintel"
    assert loaded.trained


def test_safetensors_holds_each_shared_norm_once(tmp_path, state):
    path = checkpoints.save_checkpoint(tmp_path / "a.safetensors", state, metadata={"note": "x"})
    assert equal(checkpoints.load_checkpoint(path).state, state)


@pytest.mark.parametrize("left_out", [".norm3.", ".downsample.1."])
def test_either_name_of_a_shared_norm_will_do(tmp_path, state, left_out):
    torch.save(
        {name: value for name, value in state.items() if left_out not in name}, tmp_path / "a.pth"
    )
    assert equal(checkpoints.load_checkpoint(tmp_path / "a.pth").state, state)


def test_half_precision_becomes_float32(tmp_path, state):
    half = {
        name: value.half() if value.is_floating_point() else value for name, value in state.items()
    }
    loaded = checkpoints.load_checkpoint(
        checkpoints.save_checkpoint(tmp_path / "a.safetensors", half)
    ).state
    assert loaded["fnet.conv1.weight"].dtype == torch.float32
    torch.testing.assert_close(
        loaded["fnet.conv1.weight"], state["fnet.conv1.weight"], atol=1e-3, rtol=1e-3
    )


def test_partial_names_the_first_missing(tmp_path, state):
    torch.save(
        {name: value for name, value in state.items() if not name.startswith("att.")},
        tmp_path / "a.pth",
    )
    with pytest.raises(ValueError, match=r"a\.pth.*4 missing \(first: att\.to_qk\.weight\)"):
        checkpoints.load_checkpoint(tmp_path / "a.pth")


def test_foreign_names_the_first_unexpected(tmp_path):
    save_file({"layer.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"185 missing.*1 unexpected \(first: layer\.weight\)"):
        checkpoints.load_checkpoint(tmp_path / "a.safetensors")


def test_another_shape_is_named(tmp_path, state):
    torch.save(state | {"att.to_qk.weight": torch.zeros(2, 2)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"att\.to_qk\.weight has shape \(2, 2\)"):
        checkpoints.load_checkpoint(tmp_path / "a.pth")


def test_weights_that_are_not_finite(tmp_path, state):
    broken = state["att.to_qk.weight"].clone()
    broken[0] = float("nan")
    torch.save(state | {"att.to_qk.weight": broken}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"att\.to_qk\.weight holds values that are not finite"):
        checkpoints.load_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 a broken archive"])
def test_unreadable_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: .*; expected a weights file"):
        checkpoints.load_checkpoint(tmp_path / name)


def test_code_in_a_pickle_is_not_run(tmp_path):
    import os

    class Dangerous:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"x": Dangerous()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="other things than tensors"):
        checkpoints.load_checkpoint(tmp_path / "a.pth")
    assert not (tmp_path / "made").exists()


def test_something_else_in_a_pth(tmp_path):
    torch.save([1, 2], tmp_path / "a.pth")
    with pytest.raises(ValueError, match="holds a list"):
        checkpoints.load_checkpoint(tmp_path / "a.pth")


def test_an_unknown_name_lists_the_shipped():
    with pytest.raises(FileNotFoundError, match=r"gma-sintle.*seeded"):
        checkpoints.load_checkpoint("gma-sintle")


def test_seeded_weights_say_that_they_are_noise():
    assert "noise" in checkpoints.load_checkpoint("seeded").note


@pytest.mark.parametrize(
    "name", [name for name in checkpoints.list_checkpoints() if name != "seeded"]
)
def test_shipped_weights_are_those_of_their_card(name):
    loaded = checkpoints.load_checkpoint(name)
    assert loaded.trained
    assert loaded.card["sha256"] == loaded.sha256
    assert "not the authors" in loaded.note
    assert loaded.sha256 in (checkpoints.WEIGHTS_FOLDER / f"{name}.md").read_text()


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff\xfe"])
def test_a_card_that_cannot_be_read_is_named(tmp_path, state, content):
    path = checkpoints.save_checkpoint(tmp_path / "mine.safetensors", state)
    path.with_suffix(".json").write_bytes(content)
    with pytest.raises(BadFile, match=r"mine\.json: .*; expected the card of the weights"):
        checkpoints.load_checkpoint(path)


def test_an_unreadable_file_gives_no_advice_to_run_it(tmp_path):
    """PyTorch's own message says how to load what it holds to be dangerous."""
    (tmp_path / "a.pth").write_bytes(b"not weights at all")
    with pytest.raises(BadFile) as error:
        checkpoints.load_checkpoint(tmp_path / "a.pth")
    assert "weights_only" not in str(error.value)


def test_names_that_are_no_text(tmp_path, state):
    torch.save(dict(enumerate(state.values())), tmp_path / "a.pth")
    with pytest.raises(BadFile, match="not tensors by their names"):
        checkpoints.load_checkpoint(tmp_path / "a.pth")
