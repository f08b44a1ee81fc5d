"""The network computes what the authors' computes, in every form."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gma_lib.data.padding import Padding
from gma_lib.flow.images import read_frame
from gma_lib.network import checkpoints
from gma_lib.network import model as network
from gma_lib.network.model import GMA, LOOKUPS, GMAConfig, correlation_pyramid, look_up

pytestmark = pytest.mark.slow

# Rounding in another order moves the flow by about 1e-5 px; a real difference, by a pixel and more.
CLOSE = 1e-3
EXCERPT = Path(__file__).parents[1] / "data" / "reference_excerpt.npz"


def distance(found: torch.Tensor, reference: np.ndarray) -> float:
    return float(np.abs(found.numpy() - reference).max())


@pytest.fixture(scope="module")
def frames(small_golden):
    return tuple(torch.from_numpy(small_golden[name]).float() for name in ("image1", "image2"))


@pytest.fixture(scope="module")
def encoded(seeded, frames):
    model, _ = seeded
    with torch.inference_mode():
        return model.features(frames[0]), model.features(frames[1]), model.context(frames[0])


def cells(height, width):
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return torch.from_numpy(np.stack([x, y])[None])


def with_config(state, **config):
    model = GMA(GMAConfig(**config)).eval()
    model.load_state_dict(state)
    return model


def test_size():
    model = GMA()
    assert len(model.state_dict()) == 185
    assert sum(parameter.numel() for parameter in model.parameters()) == 5_879_873


def test_encoders(encoded, small_golden):
    for found, name in zip(encoded, ("fnet_image1", "fnet_image2", "cnet_image1"), strict=True):
        assert distance(found, small_golden[name]) < CLOSE


@pytest.mark.parametrize("lookup", LOOKUPS)
def test_correlation_lookup(encoded, small_golden, lookup):
    pyramid = correlation_pyramid(encoded[0], encoded[1])
    coordinates = cells(16, 20) + torch.from_numpy(small_golden["lookup_flow"])
    assert (
        distance(look_up(pyramid, coordinates, LOOKUPS[lookup]), small_golden["lookup_corr"])
        < CLOSE
    )


def test_swapped_window_axes_are_noticed(encoded, small_golden):
    """The window's first axis moves x; the transposed one gives plausible but wrong flow, and must
    fail.
    """

    def swapped(volume, x, y):
        return LOOKUPS["matmul"](volume, x, y).transpose(1, 2)

    pyramid = correlation_pyramid(encoded[0], encoded[1])
    coordinates = cells(16, 20) + torch.from_numpy(small_golden["lookup_flow"])
    assert (
        distance(look_up(pyramid, coordinates, swapped), small_golden["lookup_corr"]) > 100 * CLOSE
    )


def test_lookup_of_a_known_volume():
    """Interpolation between cells, zeros outside, x before y: numbers to check by hand."""
    volume = torch.arange(6.0).reshape(1, 2, 3)  # rows (0, 1, 2) and (3, 4, 5)
    for lookup in LOOKUPS.values():
        window = lookup(volume, torch.full((1, 1, 1), 1.5), torch.full((1, 1, 1), 0.0))
        assert window.shape == (1, 9, 9)
        np.testing.assert_allclose(window[0, 4, 4], 1.5, atol=1e-5)  # between 1 and 2
        np.testing.assert_allclose(window[0, 3, 5], 3.5, atol=1e-5)  # one to the left, one down
        np.testing.assert_allclose(
            window[0, 5, 4], 1.0, atol=1e-5
        )  # half of the last column, half outside
        np.testing.assert_allclose(window[0, 4, 3], 0.0, atol=1e-5)  # above the first row


def test_ten_rows_are_all_that_a_window_touches():
    """Two pairs of 3x5 cells, a volume of every height, centres inside, on cells, at the edges and
    far outside.
    """
    generator = torch.Generator().manual_seed(0)
    for height in (6, 10, 11, 23):
        volume = torch.randn(2 * 15, height, 17, generator=generator)
        x = torch.rand(2, 1, 3, 5, generator=generator) * 30 - 6
        y = torch.rand(2, 1, 3, 5, generator=generator) * (height + 12) - 6
        y[0, 0, 0] = torch.tensor([0.0, height - 1.0, height - 0.5, -1e4, 1e4])
        all_rows = LOOKUPS["matmul"](volume, x, y)
        assert float((LOOKUPS["rows"](volume, x, y) - all_rows).abs().max()) < 1e-5
        assert float((LOOKUPS["rows"](volume, x, y + 0.01) - all_rows).abs().max()) > 1e-3


def test_attention_rows(seeded, encoded, small_golden):
    model, _ = seeded
    attention = model.att(torch.relu(encoded[2][:, 128:]))[0]
    for row in (0, 159):
        reference = small_golden[f"attention_row{row}"]
        assert float((np.abs(attention[row].numpy() - reference) / reference).max()) < 1e-3
    np.testing.assert_allclose(attention.sum(dim=-1), 1, atol=1e-5)


@pytest.mark.parametrize("num_updates", [1, 6, 12])
def test_flow(seeded, encoded, small_golden, num_updates):
    flow, flow_low = seeded[0].refine(*encoded, num_updates=num_updates)
    assert distance(flow, small_golden[f"flow_iters{num_updates}"]) < CLOSE
    assert distance(flow_low, small_golden[f"flow_low_iters{num_updates}"]) < CLOSE


@pytest.mark.parametrize("lookup", LOOKUPS)
def test_flow_with_every_lookup(seeded, frames, small_golden, lookup):
    model = with_config(seeded[1].state, lookup=lookup)
    with torch.inference_mode():
        assert distance(model(*frames), small_golden["flow_iters6"]) < CLOSE


@pytest.mark.parametrize(
    ("attention", "name"),
    [("position", "position_only"), ("position_and_content", "position_and_content")],
)
def test_flow_with_every_attention(seeded, frames, small_golden, attention, name):
    model = with_config(seeded[1].state, attention=attention)
    with torch.inference_mode():
        found = model(*frames)
    assert distance(found, small_golden[f"flow_iters6_{name}"]) < CLOSE
    assert distance(found, small_golden["flow_iters6"]) > 100 * CLOSE  # the variants do differ


def test_warm_start(seeded, frames, small_golden):
    with torch.inference_mode():
        found = seeded[0](*frames, flow_init=torch.full((1, 2, 16, 20), 0.75))
    assert distance(found, small_golden["flow_iters6_warm_start_0p75"]) < CLOSE


def test_batch(seeded, frames, small_golden):
    image1, image2 = frames
    with torch.inference_mode():
        found = seeded[0](torch.cat([image1, image2]), torch.cat([image2, image1]))
    assert distance(found, small_golden["flow_iters6_batch2"]) < CLOSE


def flow_by_update(model, image1, image2, num_updates):
    encoded = model.features(image1), model.features(image2), model.context(image1)
    return list(model.flow_by_update(*encoded, num_updates))


def test_sequence_ends_in_the_flow(seeded, frames):
    model, _ = seeded
    with torch.inference_mode():
        sequence = flow_by_update(model, *frames, 3)
        assert len(sequence) == 3
        assert torch.equal(sequence[-1], model(*frames, num_updates=3))


def test_gradient_reaches_every_parameter(small_frames):
    """Except where it cannot: the position embedding of content attention, and what gamma = 0 hides
    at the start.
    """
    model = GMA()
    image1, image2 = (torch.from_numpy(frame[:1]) for frame in small_frames)
    sum(flow.abs().mean() for flow in flow_by_update(model, image1, image2, 2)).backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {"att.pos_emb.rel_height.weight", "att.pos_emb.rel_width.weight"}
    assert model.update_block.aggregator.gamma.grad.abs() > 0


def test_half_precision_keeps_coordinates_exact(seeded, encoded, monkeypatch):
    """bf16 autocast moves the flow by rounding; bf16 coordinates would be half a pixel apart."""
    places = []

    def note(pyramid, coordinates, lookup):
        places.append(coordinates)
        return look_up(pyramid, coordinates, lookup)

    monkeypatch.setattr(network, "look_up", note)
    with torch.inference_mode():
        full, _ = seeded[0].refine(*encoded, num_updates=2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            reduced, _ = seeded[0].refine(*encoded, num_updates=2)
    assert reduced.dtype == places[-1].dtype == torch.float32
    assert (places[-1] != places[-1].bfloat16()).any()
    assert 0 < float((full - reduced).abs().mean()) < 0.2


@pytest.mark.parametrize("size", [(436, 1024), (128, 161), (120, 160)])
def test_sizes_that_the_network_cannot_take(seeded, size):
    with pytest.raises(ValueError, match="multiples of 8 and at least 128"):
        seeded[0](torch.zeros(1, 3, *size), torch.zeros(1, 3, *size))


def test_frames_that_do_not_belong_together(seeded):
    with pytest.raises(ValueError, match="differ in shape"):
        seeded[0](torch.zeros(1, 3, 128, 160), torch.zeros(1, 3, 128, 168))
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        seeded[0](torch.zeros(1, 1, 128, 160), torch.zeros(1, 1, 128, 160))


@pytest.mark.parametrize(
    "wrong",
    [{"num_updates": 0}, {"num_updates": 2.5}, {"attention": "global"}, {"lookup": "magic"}],
)
def test_configurations_that_do_not_exist(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        GMAConfig(**wrong)


@pytest.mark.parametrize("attention", ["content", "position", "position_and_content"])
def test_excerpt_of_the_reference(seeded, attention):
    """Every 16th pixel of the authors' flow for a small pair: goes with the project, so that parity
    is tested everywhere.
    """
    names = {"content": "flow_iters6", "position": "flow_iters6_position_only"}
    with np.load(EXCERPT) as file:
        image1, image2 = (torch.from_numpy(file[name]).float() for name in ("image1", "image2"))
        reference = file[names.get(attention, "flow_iters6_position_and_content")]
    with torch.inference_mode():
        found = with_config(seeded[1].state, attention=attention)(image1, image2)
    assert distance(found[..., 4::16, 4::16], reference) < CLOSE


@pytest.mark.exhaustive
def test_full_size(seeded, golden, sintel_sample):
    """A real pair at 440x1024, as the guide deploys it."""
    frames = [
        read_frame(sintel_sample / f"training/final/cave_2/frame_000{number}.png")
        for number in (2, 3)
    ]
    padding = Padding.for_size(436, 1024)
    image1, image2 = (torch.from_numpy(padding.pad(frame))[None] for frame in frames)
    with np.load(golden / "gma_reference_sintel_440x1024_iters6.npz") as file:
        reference = file["final_cave_2"]
    with torch.inference_mode():
        assert distance(seeded[0](image1, image2)[0], reference) < CLOSE


def test_seeded_weights_are_the_same_everywhere():
    state = checkpoints.make_seeded_weights()
    assert state["cnet.conv1.bias"][:2].tolist() == pytest.approx(
        [0.01409523, 0.02565706], abs=1e-7
    )
