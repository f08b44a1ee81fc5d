"""Weights are loaded strictly, from every form in which they are published."""

import argparse
import shutil
import time
import zipfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gma_lib.infer import estimator
from gma_lib.network import bundled, checkpoints
from gma_lib.network.model import GMAConfig
from gma_lib.runs.files import BadFile


@pytest.fixture(scope="module")
def state():
    return checkpoints.make_seeded_weights()


def equal(found, state):
    return set(found) == set(state) and all(torch.equal(found[name], state[name]) for name in state)


def test_official_file(tmp_path, state):
    """As the authors save theirs, from ``DataParallel``."""
    state = state | {"update_block.aggregator.gamma": torch.tensor([0.3])}
    path = tmp_path / "gma-sintel.pth"
    torch.save({f"module.{name}": value for name, value in state.items()}, path)
    loaded = checkpoints.load_checkpoint(path)
    assert equal(loaded.state, state)
    assert loaded.name == "gma-sintel"
    assert loaded.trained


def test_safetensors_holds_each_shared_norm_once(tmp_path, state):
    path = checkpoints.save_checkpoint(tmp_path / "a.safetensors", state, metadata={"note": "x"})
    assert equal(checkpoints.load_checkpoint(path).state, state)


def test_the_same_weights_are_the_same_bytes(tmp_path, state):
    metadata = {name: name for name in "badcfe"}
    written = {
        checkpoints.save_checkpoint(
            tmp_path / "a.safetensors", state, metadata=metadata
        ).read_bytes()
        for _ in range(5)
    }
    assert len(written) == 1
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == metadata
    assert equal(checkpoints.load_checkpoint(tmp_path / "a.safetensors").state, state)


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
    difference = loaded["fnet.conv1.weight"] - state["fnet.conv1.weight"]
    assert 0 < difference.abs().max() < 1e-3


def test_partial_names_the_first_missing(tmp_path, state):
    torch.save(
        {name: value for name, value in state.items() if not name.startswith("att.")},
        tmp_path / "a.pth",
    )
    with pytest.raises(ValueError, match=r"a\.pth.*4 missing \(first: att\.to_qk\.weight\)"):
        checkpoints.load_checkpoint(tmp_path / "a.pth")


def test_foreign_names_the_first_unexpected(tmp_path):
    save_file({"layer.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"168 missing.*1 unexpected \(first: layer\.weight\)"):
        checkpoints.load_checkpoint(tmp_path / "a.safetensors")


def test_another_shape_is_named(tmp_path, state):
    torch.save(state | {"att.to_qk.weight": torch.zeros(2, 2)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"att\.to_qk\.weight has shape \(2, 2\)"):
        checkpoints.load_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda value: value.clone().fill_(float("nan")), "not finite"),
        (lambda value: value.double() * 1e300, "not finite in float32"),
        (lambda value: value.to(torch.complex64) * 1j, "complex64"),
        (lambda value: value.to(torch.int8), "int8"),
        (lambda value: value.to(torch.float8_e4m3fn), "float8"),
        (lambda value: value.to_sparse(), "sparse"),
        (lambda value: value > 0, "bool"),
        (lambda value: value.to("meta"), "without values"),
    ],
)
def test_weights_are_real_and_finite_in_float32(tmp_path, state, change, complaint):
    name = "att.to_qk.weight"
    torch.save(state | {name: change(state[name])}, tmp_path / "a.pth")
    with pytest.raises(BadFile, match=rf"a\.pth: .*{complaint}"):
        checkpoints.load_checkpoint(tmp_path / "a.pth")
    torch.save(state | {name: state[name].double()}, tmp_path / "a.pth")
    assert equal(checkpoints.load_checkpoint(tmp_path / "a.pth").state, state)


def test_variances_are_not_negative(tmp_path, state):
    name = "cnet.norm1.running_var"
    torch.save(state | {name: -state[name] - 1}, tmp_path / "a.pth")
    with pytest.raises(BadFile, match=f"{name} holds negative"):
        checkpoints.load_checkpoint(tmp_path / "a.pth")


def test_the_indices_of_positions_are_those_of_the_network(tmp_path, state):
    name = "att.pos_emb.rel_ind"
    torch.save(state | {name: state[name] + 1}, tmp_path / "a.pth")
    with pytest.raises(BadFile, match=f"{name} is not the network's"):
        checkpoints.load_checkpoint(tmp_path / "a.pth")


def test_two_names_of_one_norm_do_not_contradict_each_other(tmp_path, state):
    name = "fnet.layer2.0.downsample.1.weight"
    name = name if name in state else "cnet.layer2.0.downsample.1.weight"
    torch.save(state | {name: state[name] + 1}, tmp_path / "a.pth")
    with pytest.raises(BadFile, match=r"norm3.* are one tensor of the network, and differ"):
        checkpoints.load_checkpoint(tmp_path / "a.pth")


def test_what_others_wrap_around_weights_is_taken_off(tmp_path, state):
    def prefixed(prefix):
        return {f"{prefix}{name}": value for name, value in state.items()}

    counters = [name for name in state if "num_batches" in name]
    for content in (
        {"state_dict": state, "hyper_parameters": {"lr": 1e-4}, "epoch": 3},
        {"model": prefixed("module."), "optimizer": {"state": {}, "param_groups": []}},
        {"state_dict": prefixed("model."), "step": 1},
        {"state_dict": {"model": prefixed("module._orig_mod.")}},
        prefixed("_orig_mod.module."),
        {name: value for name, value in state.items() if name not in counters},
    ):
        torch.save(content, tmp_path / "a.pth")
        assert equal(checkpoints.load_checkpoint(tmp_path / "a.pth").state, state)


def test_wrapping_is_taken_off_strictly(tmp_path, state):
    name = "att.to_qk.weight"
    for content, complaint in (
        ({"state_dict": state, "model": state}, r"several sets of weights \(state_dict, model\)"),
        ({"model": state, "model_ema": state}, r"several sets of weights \(model, model_ema\)"),
        (state | {f"module.{name}": state[name]}, "1 unexpected"),
        ({"weights": state}, "holds a dict, not tensors"),
        ({"state_dict": {}}, "168 missing"),
        ({"state_dict": [1]}, "holds a dict, not tensors"),
    ):
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(BadFile, match=complaint):
            checkpoints.load_checkpoint(tmp_path / "a.pth")


def test_weights_that_unpack_to_more_than_they_are_stay_packed(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data/0", bytes(10**7))
    with pytest.raises(BadFile, match="that unpack to 10,000,000"):
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


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_long_name_of_a_class_is_refused_at_once(tmp_path, is_zip):
    """PyTorch searches in its own message for a time that grows with the square of its length."""
    torch.save(argparse.Namespace(), tmp_path / "a.pth", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(BadFile, match="other things than tensors"):
        checkpoints.load_checkpoint(tmp_path / "a.pth")
    named = b"cargparse\n" + b"x" * 10**6 + b"\n."
    if is_zip:
        with zipfile.ZipFile(tmp_path / "a.pth", "w") as file:
            file.writestr("archive/data.pkl", b"\x80\2" + named)
    else:
        old = (tmp_path / "a.pth").read_bytes()
        (tmp_path / "a.pth").write_bytes(old.replace(b"cargparse\nNamespace\n", named))
    started = time.process_time()
    with pytest.raises(BadFile, match="names a class in 1,000,009 characters"):
        checkpoints.load_checkpoint(tmp_path / "a.pth")
    assert time.process_time() - started < 2


def test_something_else_in_a_pth(tmp_path):
    torch.save([1, 2], tmp_path / "a.pth")
    with pytest.raises(ValueError, match="holds a list"):
        checkpoints.load_checkpoint(tmp_path / "a.pth")


def test_weights_that_were_replaced_are_noticed(tmp_path, state):
    """Between two stages, of which the later would compute with others than its record says."""
    path = checkpoints.save_checkpoint(tmp_path / "a.safetensors", state)
    recorded = checkpoints.load_checkpoint(path).to_record()
    assert checkpoints.find_same_weights(recorded) == str(path)
    bundled = checkpoints.load_checkpoint("seeded").to_record()
    assert checkpoints.find_same_weights(bundled) == "seeded"
    other = state | {"fnet.conv1.bias": state["fnet.conv1.bias"] + 1}
    checkpoints.save_checkpoint(path, other)
    with pytest.raises(ValueError, match="02_export"):
        checkpoints.find_same_weights(recorded)


def test_an_unknown_name_lists_the_shipped():
    with pytest.raises(FileNotFoundError, match=r"gma-sintle.*gma-procedural") as caught:
        checkpoints.load_checkpoint("gma-sintle")
    assert "seeded" not in str(caught.value)  # noise is no remedy


def test_seeded_weights_say_that_they_are_noise():
    assert "noise" in checkpoints.load_checkpoint("seeded").note


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_seeded_weights_in_a_file_are_still_noise(tmp_path, kind):
    state = {
        name: value.to(kind) if value.is_floating_point() else value
        for name, value in checkpoints.make_seeded_weights(seed=5).items()
    }
    torch.save(state, tmp_path / "a.pth")
    path = checkpoints.save_checkpoint(tmp_path / "a.safetensors", state)
    for file in (path, tmp_path / "a.pth"):
        assert not checkpoints.load_checkpoint(file).trained
        assert not estimator._identify_weights(str(file))[1]


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


def test_bundled_weights_that_changed_are_refused(tmp_path, monkeypatch):
    """One byte of one weight; as a file of the user, by its path, they may be what they are."""
    name = "gma-procedural"
    for suffix in (".safetensors", ".json"):
        shutil.copy(checkpoints.WEIGHTS_FOLDER / f"{name}{suffix}", tmp_path)
    monkeypatch.setattr(bundled, "WEIGHTS_FOLDER", tmp_path)
    assert checkpoints.load_checkpoint(name).sha256 == estimator._identify_weights(name)[0]
    file = tmp_path / f"{name}.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    for load in (checkpoints.load_checkpoint, estimator._identify_weights):
        with pytest.raises(BadFile, match=r"gma-procedural\.safetensors.* Reinstall"):
            load(name)
    assert checkpoints.load_checkpoint(file).trained


def test_a_wrapper_around_itself_ends(tmp_path):
    content = {}
    content["model"] = content
    torch.save(content, tmp_path / "circle.pth")
    with pytest.raises(BadFile, match="not tensors"):
        checkpoints.load_checkpoint(tmp_path / "circle.pth")


def test_one_changed_byte_is_found(tmp_path, state):
    """PyTorch itself loads such a file without a word."""
    path = tmp_path / "a.pth"
    torch.save(state, path)
    checkpoints.load_checkpoint(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 64
    path.write_bytes(data)
    with pytest.raises(BadFile, match="checksum"):
        checkpoints.load_checkpoint(path)


def test_a_huge_file_is_refused_unread(tmp_path):
    for name in ("a.pth", "a.safetensors"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(2**32)
        start = time.process_time()
        with pytest.raises(BadFile, match="at most"):
            checkpoints.load_checkpoint(tmp_path / name)
        assert time.process_time() - start < 1


def test_a_script_is_not_weights(tmp_path, recwarn):
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "a.pth")
    recwarn.clear()
    with pytest.raises(BadFile, match="other things than tensors") as error:
        checkpoints.load_checkpoint(tmp_path / "a.pth")
    assert "weights_only" not in str(error.value)
    assert not recwarn.list


def test_safetensors_under_another_name(tmp_path, state):
    path = checkpoints.save_checkpoint(tmp_path / "a.safetensors", state)
    path.rename(tmp_path / "a.pth")
    assert equal(checkpoints.load_checkpoint(tmp_path / "a.pth").state, state)


def test_weights_for_another_attention_than_is_computed_are_refused(tmp_path, state):
    """A state dict does not tell, but ``gma.safetensors`` of a run does: its flow was another."""
    file, other = tmp_path / "gma.safetensors", tmp_path / "other.safetensors"
    checkpoints.save_checkpoint(file, state, metadata={"attention": "position"})
    checkpoints.save_checkpoint(other, state, metadata={"note": "x"})
    position = GMAConfig(attention="position")
    with pytest.raises(BadFile, match=r"gma\.safetensors.*=position.*=content.* --set"):
        checkpoints.load_model(file)
    assert equal(checkpoints.load_model(file, position)[0].state_dict(), state)
    for config in (None, position):
        assert equal(checkpoints.load_model(other, config)[0].state_dict(), state)
