"""The graph computes the network's flow, alone and in a batch."""

import pytest

from gma_lib import export
from gma_lib.network.checkpoints import load_model
from gma_lib.network.deploy import to_deploy_form
from gma_lib.network.model import GMAConfig

pytestmark = pytest.mark.slow


def test_every_pair_of_a_batch_is_computed(shallow):
    model, checkpoint = shallow
    assert export.measure_deviation_in_batch(to_deploy_form(model), model, 3, checkpoint).max < 1e-3
    other, _ = load_model("gma-procedural", GMAConfig(num_updates=2))
    assert (
        export.measure_deviation_in_batch(other, model, 3, checkpoint).max > 1
    )  # another network is noticed
