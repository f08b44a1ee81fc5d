"""What float16 does to flow, emulated on a CPU: which parts of the network have to stay float32.

Ascend's compiler computes in float16 unless told otherwise. Here every value that it would hold in
float16 is rounded to float16 and back: weights, and the output of every node that is not kept. Sums
within a node stay float32, as in the card's matrix unit; what its vector unit rounds *within* a
normalisation or a softmax is not emulated, so those can only look better here than on the card. No
card has confirmed any of this.
"""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import click
import numpy as np
import onnx
import onnxruntime
import pandas as pd
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from gma_lib.ascend.keep import is_instance_norm, is_norm_or_coordinate, is_outside_modules
from gma_lib.data.padding import Padding
from gma_lib.data.sintel import FramePair, find_pairs, find_root
from gma_lib.export.trace import export_whole
from gma_lib.flow.files import read_flow
from gma_lib.flow.images import read_frame
from gma_lib.flow.metrics import endpoint_error
from gma_lib.network.checkpoints import load_model
from gma_lib.runs.machine import count_cores
from gma_lib.runs.progress import show_messages, track

LARGEST = float(np.finfo(np.float16).max)


VARIANTS: dict[str, Callable[[NodeProto], bool]] = {
    "everything float16": lambda node: False,
    "InstanceNorm float32 (the guide)": is_instance_norm,
    "+ coordinates float32": is_norm_or_coordinate,
    "+ coordinates and correlation float32": lambda node: (
        is_instance_norm(node) or is_outside_modules(node)
    ),
    "only coordinates and correlation float32": is_outside_modules,
}


def rounded_to_half(model: ModelProto, keep: Callable[[NodeProto], bool]) -> ModelProto:
    """The same graph with every float value rounded to float16 and back, but for the outputs and
    weights of nodes to keep.

    A graph output is rounded as the node that gives it is. Values beyond 65504 become infinite, as
    they do in float16.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    floats = {
        tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT
    }
    kept_weights = {name for node in graph.node if keep(node) for name in node.input}
    for name, tensor in floats.items():
        if name not in kept_weights:
            with np.errstate(over="ignore"):
                tensor.CopyFrom(
                    numpy_helper.from_array(
                        numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32), name
                    )
                )
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.value_info, *graph.output, *graph.input)
    }
    nodes = []
    for node in graph.node:
        nodes.append(node)
        for index, name in enumerate(node.output):
            if keep(node) or types.get(name) != TensorProto.FLOAT:
                continue
            node.output[index], half = f"{name}_exact", f"{name}_half"
            nodes.append(
                helper.make_node("Cast", [node.output[index]], [half], to=TensorProto.FLOAT16)
            )
            nodes.append(helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT))
    nodes = [_copy(node) for node in nodes]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return result


def _copy(node: NodeProto) -> NodeProto:
    copied = NodeProto()
    copied.CopyFrom(node)
    return copied


def study(
    pairs: list[FramePair], checkpoint: str, *, progress: Callable[..., Iterable] | None = None
) -> pd.DataFrame:
    """Errors of every variant, pooled over all pixels of ``pairs``, which need ground truth and one
    size.

    Returns
    -------
    pandas.DataFrame
        A row per variant, float32 first: EPE (px), 1px (%), mean and 99th percentile and largest
        distance from float32 flow (px).
    """
    height, width = read_frame(pairs[0].image1).shape[1:]
    padding = Padding.for_size(height, width)
    rows, columns = padding.padded_size(height, width)
    model, loaded = load_model(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        file = export_whole(
            model,
            Path(folder) / "gma.onnx",
            height=rows,
            width=columns,
            batch_size=1,
            checkpoint=loaded,
        )
        exact = onnx.load(file)
    variants = {"float32": exact} | {
        name: rounded_to_half(exact, keep) for name, keep in VARIANTS.items()
    }
    flows: dict[str, list[np.ndarray]] = {}
    for name in (
        progress(list(variants), label="variants", unit="variant") if progress else variants
    ):
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = count_cores()
        settings.log_severity_level = 4
        # a pair of Casts is what is wanted here, and what an optimiser would take away
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(
            variants[name].SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
        for pair in pairs:
            frames = {
                key: padding.pad(read_frame(getattr(pair, key)))[None]
                for key in ("image1", "image2")
            }
            flows.setdefault(name, []).append(padding.unpad(session.run(None, frames)[0][0]))
    truth = [read_flow(pair.flow) for pair in pairs]
    return pd.DataFrame(
        {name: _scores(found, truth, flows["float32"]) for name, found in flows.items()}
    ).T


def _scores(
    found: list[np.ndarray], truth: list[np.ndarray], exact: list[np.ndarray]
) -> dict[str, float]:
    if not all(np.isfinite(flow).all() for flow in found):
        return dict.fromkeys(("EPE, px", "1px, %", "mean", "p99", "largest"), float("nan"))
    errors = np.concatenate(
        [endpoint_error(flow, wanted).ravel() for flow, wanted in zip(found, truth, strict=True)]
    )
    distances = np.concatenate(
        [endpoint_error(flow, wanted).ravel() for flow, wanted in zip(found, exact, strict=True)]
    )
    return {
        "EPE, px": errors.mean(),
        "1px, %": 100 * (errors < 1).mean(),
        "mean": distances.mean(),
        "p99": np.percentile(distances, 99),
        "largest": distances.max(),
    }


def markdown(table: pd.DataFrame) -> str:
    """The table as the docs show it; a variant that left float16's range says so."""
    lines = [
        "| float16, but for | EPE, px | 1px, % | from float32, px: mean | 99th percentile | largest |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in table.iterrows():
        cells = ["not finite"] * 5 if row.isna().any() else [f"{value:.4f}" for value in row]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command()
@click.option("--sintel", required=True, help="Folder of the data set.")
@click.option("--checkpoint", default="gma-procedural", show_default=True)
@click.option(
    "--most", default=8, show_default=True, help="Pairs with ground truth, at most so many."
)
def main(sintel: str, checkpoint: str, most: int) -> None:
    """Measure what float16 costs, part by part, and print the table."""
    show_messages()
    root = find_root(Path(sintel), "training")
    pairs = [
        pair
        for name in ("clean", "final")
        for pair in find_pairs(root, pass_name=name)
        if pair.flow is not None
    ]
    chosen = pairs[:: max(1, -(-len(pairs) // most))]
    print(
        f"{len(chosen)} pairs: {', '.join(pair.name for pair in chosen)}; weights: {checkpoint}\n"
    )
    print(markdown(study(chosen, checkpoint, progress=track)))


if __name__ == "__main__":
    main()
