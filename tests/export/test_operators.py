"""What a file holds: no operator that deployments stumble over, and the work of every part."""

import pytest

from gma_lib import ascend, export
from gma_lib.network.checkpoints import load_model
from gma_lib.network.model import GMAConfig

pytestmark = pytest.mark.slow

UNWANTED = {"Gather", "GatherElements", "GatherND", "GridSample", "ScatterND", "Where", "Cast"}


def test_operators(exported):
    lookup, path, _ = exported
    found = export.count_operators(path)
    if lookup == "matmul":
        assert not UNWANTED & set(found)
        assert ascend.list_wide_activations(path) == []
    else:  # the same look at the other forms finds what it should find
        assert UNWANTED & set(found)
    if lookup == "gather":
        # as in the guide's own graph: four corners, four levels, two updates
        assert found["GatherElements"] == 4 * 4 * 2
        assert ascend.list_wide_activations(path)


def test_rare_operators_are_folded_but_gathers_and_casts_are_not():
    found = {"Conv": 9, "Add": 5, "Mul": 4, "Sub": 3, "Cast": 2, "GatherND": 1, "Pad": 1}
    shown = export.fold_operators(found, 2)
    assert shown == {"Conv": 9, "Add": 5, "Cast": 2, "GatherND": 1, "3 others": 8}
    assert export.fold_operators(found) == found


def test_work_of_each_part_is_what_the_arithmetic_says(exported):
    """In one of 22 of the cells of 440x1024, and 2 updates."""
    _, path, _ = exported
    work = {part: gmac * 22 / 2 for part, gmac in export.count_work(path).items()}  # of two pairs
    assert work["feature encoder"] == pytest.approx(61.23, abs=0.01)
    assert work["context encoder"] == pytest.approx(30.62, abs=0.01)
    assert work["GRU"] == pytest.approx(2 * 13.84, abs=0.02)
    assert work["upsampling weights"] == pytest.approx(3.11, abs=0.01)


def count_products(rows, columns):
    """Multiply-accumulates, in units of 1e9, of one pair: of all pairs of cells, and of a lookup of
    windows by products.
    """
    cells, levels = rows * columns, [(rows >> level, columns >> level) for level in range(4)]
    all_pairs = sum(cells * high * wide * 256 for high, wide in levels)
    windows = sum(cells * high * 9 * (wide + 9) for high, wide in levels)
    return all_pairs / 1e9, windows / 1e9


def test_all_pairs_are_multiplied_once_and_windows_in_every_update(exported):
    lookup, path, _ = exported
    work, (all_pairs, windows) = export.count_work(path), count_products(16, 20)
    assert work["correlation"] == pytest.approx(2 * all_pairs)  # of two pairs
    if lookup == "matmul":
        assert work["lookup"] == pytest.approx(2 * 2 * windows)


@pytest.mark.exhaustive
def test_all_work_is_what_the_arithmetic_says(tmp_path, seeded):
    """At 440x1024 with 6 updates; 286.8 GMAC without the pooled levels (4.0) and the lookup's
    products (4.35).
    """
    model, checkpoint = seeded
    path = export.export_whole(
        model, tmp_path / "gma.onnx", height=440, width=1024, batch_size=1, checkpoint=checkpoint
    )
    work = export.count_work(path)
    assert sum(work.values()) - work["lookup"] - (work["correlation"] - 12.69) == pytest.approx(
        286.8, abs=0.2
    )


@pytest.mark.exhaustive
def test_the_lookup_in_a_frame_of_256_cells_a_side_is_no_correlation(tmp_path, seeded):
    """Its products then contract over as many values as there are channels."""
    _, checkpoint = seeded
    model, _ = load_model("seeded", GMAConfig(lookup="matmul", num_updates=1))
    size = {"height": 128, "width": 2048, "batch_size": 1}
    path = export.export_whole(model, tmp_path / "gma.onnx", **size, checkpoint=checkpoint)
    work = export.count_work(path)
    assert (work["correlation"], work["lookup"]) == pytest.approx(count_products(16, 256))


def test_every_node_belongs_to_a_part(exported):
    _, path, _ = exported
    parts = export.map_nodes_to_parts(path)
    assert len(parts) == sum(export.count_operators(path).values())
    assert set(export.count_work(path)) <= set(parts.values())
    assert export.REST in parts.values()
