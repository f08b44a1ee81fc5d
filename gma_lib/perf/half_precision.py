"""Emulate float16 on a CPU: which parts of the network have to stay float32?

Ascend's compiler computes in float16 unless told otherwise. Here every value that it would hold in
float16 is rounded to float16 and back: weights, and the output of every node that is not kept. Sums
within a node stay float32, as in the card's matrix unit; what its vector unit rounds *within* a
normalisation or a softmax is not emulated, so those can only look better here than on the card. No
card has confirmed any of this.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from gma_lib import ascend, convert, runs
from gma_lib.data import PASSES, FramePair, Padding, find_pairs
from gma_lib.flow.metrics import endpoint_error, pool_scores, sum_errors
from gma_lib.runs.leftovers import temporary_folder

Choice = Callable[[NodeProto], bool]  # whether a node stays float32
VARIANTS: dict[str, Choice] = {
    "everything float16": lambda node: False,
    "InstanceNorm float32 (the guide)": ascend.is_instance_norm,
    "+ coordinates float32": ascend.is_norm_or_coordinate,
    "+ coordinates and correlation float32": lambda node: (
        ascend.is_instance_norm(node) or ascend.is_outside_modules(node)
    ),
    "only coordinates and correlation float32": ascend.is_outside_modules,
}


def round_to_half(model: ModelProto, keep: Choice) -> ModelProto:
    """Return the same graph with every float value rounded to float16 and back, but for the outputs
    and weights of nodes to keep.

    A graph output is rounded as the node that gives it is. Values beyond 65504 become infinite, as
    they do in float16.
    """
    result = copy.deepcopy(model)
    _round_weights(result.graph, keep)
    _round_outputs(result.graph, keep)
    return result


def _round_weights(graph: GraphProto, keep: Choice) -> None:
    kept = {name for node in graph.node if keep(node) for name in node.input}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in kept:
            with np.errstate(over="ignore"):
                half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half.astype(np.float32), tensor.name))


def _round_outputs(graph: GraphProto, keep: Choice) -> None:
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.value_info, *graph.output, *graph.input)
    }
    nodes = []
    for original in graph.node:
        node = copy.deepcopy(original)
        nodes.append(node)
        for index, name in enumerate(node.output):
            if keep(node) or types.get(name) != TensorProto.FLOAT:
                continue
            node.output[index], half = f"{name}_exact", f"{name}_half"
            nodes += [
                helper.make_node("Cast", [f"{name}_exact"], [half], to=TensorProto.FLOAT16),
                helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT),
            ]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)


def choose_pairs(root: Path, most: int) -> list[FramePair]:
    """Choose at most ``most`` pairs with ground truth of both passes, evenly."""
    found = [pair for name in PASSES for pair in find_pairs(root, pass_name=name)]
    known = [pair for pair in found if pair.flow is not None]
    if not known:
        raise ValueError(f"{root}: no pair has ground truth (training/flow)")
    return known[:: max(1, -(-len(known) // most))]


def study_variants(
    pairs: Sequence[FramePair], checkpoint: str, *, track: runs.Track = runs.pass_silently
) -> pd.DataFrame:
    """Measure the errors of every variant, pooled over all pixels of ``pairs``, which need ground
    truth and one size.

    Returns
    -------
    pandas.DataFrame
        A row per variant, float32 first: EPE (px), 1px (%), mean and 99th percentile and largest
        distance from float32 flow (px).
    """
    frames = [pair.load_frames() for pair in pairs]
    padding = Padding.for_size(*frames[0][0].shape[1:])
    height, width = padding.padded_size(*frames[0][0].shape[1:])
    with temporary_folder() as folder:
        spec = convert.ModelSpec(checkpoint, height, width, lookup="matmul", steps=())
        exact = onnx.load(convert.export_model(spec, folder)[0][0])
    variants = {"float32": exact} | {
        name: round_to_half(exact, keep) for name, keep in VARIANTS.items()
    }
    flows = {
        name: _compute_flows(variants[name], frames, padding)
        for name in track(list(variants), label="variants", unit="variant")
    }
    truth = [pair.load_flow() for pair in pairs]
    return pd.DataFrame(
        {name: _score(found, truth, flows["float32"]) for name, found in flows.items()}
    ).T


def _compute_flows(
    model: ModelProto, frames: Sequence[tuple[np.ndarray, np.ndarray]], padding: Padding
) -> list[np.ndarray]:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = runs.count_cores()
    settings.log_severity_level = 4
    # a pair of Casts is what is wanted here, and what an optimiser would take away
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    feeds = [
        {"image1": padding.pad(frame1)[None], "image2": padding.pad(frame2)[None]}
        for frame1, frame2 in frames
    ]
    return [padding.unpad(session.run(None, one)[0][0]) for one in feeds]


def _score(
    found: Sequence[np.ndarray], truth: Sequence[np.ndarray], exact: Sequence[np.ndarray]
) -> dict[str, float]:
    if not all(np.isfinite(flow).all() for flow in found):
        return dict.fromkeys(("EPE, px", "1px, %", "mean", "p99", "largest"), float("nan"))
    scores = [sum_errors(*flows) for flows in zip(found, truth, strict=True)]
    metrics = pool_scores(scores)["all"].to_metrics()
    distances = np.concatenate(
        [endpoint_error(*flows).ravel() for flows in zip(found, exact, strict=True)]
    )
    return {
        "EPE, px": metrics["epe"],
        "1px, %": 100 * metrics["px1"],
        "mean": distances.mean(),
        "p99": np.percentile(distances, 99),
        "largest": distances.max(),
    }


def tabulate_study(table: pd.DataFrame) -> str:
    """Return the table in Markdown; a variant that left float16's range says so."""
    lines = [
        "| variant | EPE, px | 1px, % | from float32, px: mean | 99th percentile | largest |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in table.iterrows():
        cells = ["not finite"] * 5 if row.isna().any() else [f"{value:.4f}" for value in row]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
