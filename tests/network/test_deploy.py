"""Less work, the same flow: every step on its own, all together, and what they save."""

import numpy as np
import pytest
import torch

from gma_lib import export
from gma_lib.flow.metrics import Deviation
from gma_lib.network.checkpoints import load_model
from gma_lib.network.deploy import DEPLOY_STEPS, to_deploy_form
from gma_lib.network.model import GMAConfig

pytestmark = pytest.mark.slow

SMALL = {"height": 128, "width": 160}


@pytest.mark.parametrize("steps", [*((name,) for name in DEPLOY_STEPS), tuple(DEPLOY_STEPS)])
@pytest.mark.parametrize("weights", ["seeded", "gma-procedural"])
def test_same_flow(weights, steps, small_frames):
    model, _ = load_model(weights, GMAConfig(num_updates=2))
    reference = export.compute_reference(model, *small_frames)
    found = export.compute_reference(to_deploy_form(model, steps), *small_frames)
    assert Deviation.between(found, reference).max < 1e-3
    assert np.abs(reference).max() > 0.5  # or nothing could differ


@pytest.mark.parametrize("attention", ["position", "position_and_content"])
def test_same_flow_of_the_other_attentions(attention, small_frames):
    model, _ = load_model("seeded", GMAConfig(num_updates=2, attention=attention))
    assert (
        Deviation.between(
            export.compute_reference(to_deploy_form(model), *small_frames),
            export.compute_reference(model, *small_frames),
        ).max
        < 1e-3
    )


def test_a_weight_in_the_wrong_place_is_noticed(shallow, small_frames):
    model, _ = shallow
    spoiled = to_deploy_form(model)
    with torch.no_grad():
        spoiled.update_block.gru.gates1.weight[:, 0] = 0  # one hidden channel of 128
    assert (
        Deviation.between(
            export.compute_reference(spoiled, *small_frames),
            export.compute_reference(model, *small_frames),
        ).max
        > 1e-3
    )


def test_the_network_itself_is_left_alone(seeded):
    model, _ = seeded
    before = {name: value.clone() for name, value in model.state_dict().items()}
    to_deploy_form(model)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_work_saved_is_what_the_arithmetic_says(tmp_path, shallow):
    """At 2 updates: a quarter of the GRU is done once instead of twice, and V (128x128 in 16x20
    cells) not at all.
    """
    model, checkpoint = shallow
    size = {"height": 128, "width": 160, "batch_size": 1, "checkpoint": checkpoint}
    plain = export.count_work(export.export_whole(model, tmp_path / "plain.onnx", **size))
    saving = export.count_work(
        export.export_whole(to_deploy_form(model), tmp_path / "deploy.onnx", **size)
    )
    assert saving["GRU"] == pytest.approx(plain["GRU"] * 0.75, rel=1e-6)
    assert saving["GRU's context"] == pytest.approx(plain["GRU"] * 0.25 / 2, rel=1e-6)
    assert plain["aggregation"] - saving["aggregation"] == pytest.approx(
        2 * 128 * 128 * 16 * 20 / 1e9, rel=1e-6
    )
    assert saving["lookup"] == plain["lookup"]


def test_unknown_steps_are_refused(seeded):
    with pytest.raises(
        ValueError, match=r"no step 'context'; there are: aggregator folded, context hoisted"
    ):
        to_deploy_form(seeded[0], ("context",))
