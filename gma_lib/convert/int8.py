"""Convolutions, correlation and attention in 8-bit integers, for OpenVINO.

Convolutions and the correlation get their ranges by calibration after training (NNCF), on rendered
scenes that neither training nor validation draws: weights per output channel, what flows into them
per tensor. Attention: ``gma_lib.convert.int8_attention``. All else stays as it is: the feature
encoder, normalisation, the lookup, upsampling; coordinates stay float32.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import openvino

try:
    import nncf
    import rich
    from nncf.openvino.graph.model_transformer import OVModelTransformer
    from nncf.openvino.statistics.collectors import OV_REDUCERS_MAP, OVQuantileReducer
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
    from nncf.quantization.range_estimator import (
        AggregatorType,
        RangeEstimatorParameters,
        StatisticsCollectorParameters,
        StatisticsType,
    )
    from nncf.tensor import Tensor
except ModuleNotFoundError as error:
    needed = "int8 needs nncf: pip install 'gma-lib[int8]'"
    raise ModuleNotFoundError(needed, name=error.name) from error

from gma_lib.backends.base import PARTS
from gma_lib.convert.int8_attention import attend_in_integers
from gma_lib.runs import RESOURCES, find_memory, track
from gma_lib.training.config import load_config
from gma_lib.training.pairs import PairSource

CALIBRATION_PAIRS = 6
TEXTURES = 24
# Does not depend on the seed of training; another one makes other models. It is the seed of the
# held-out scenes: calibration shares outlines and some textures with their family "layers", but no
# scenes (see gma_lib/perf/precision.py).
CALIBRATION_SEED = 20211010
FIRST_SCENE = 2_000_000_000  # scene numbers of training start at 0, those held out at a billion
LARGEST_DISPLACEMENT = 120.0  # pixels; motion beyond what calibration saw would be clipped

# The frames fill their range, the flow has none that calibration could know: cutting either costs
# more than these two small layers save. Features are told apart by small differences: with their
# encoder in 8 bits, 1px on held-out scenes falls by four times as much.
_FLOAT_LAYERS = (r".*net/conv1/.*", r".*convf1.*", r".*fnet/.*")
_FLOAT_OPERATIONS = (
    "MVN",
    "Softmax",
    "Add",
    "Subtract",
    "Multiply",
    "Divide",
    "AvgPool",
    "ReduceSum",
)
# Single outliers would stretch the range until 256 steps are too few for everything else.
_OUTLIERS = 1e-4

# Memory while ranges are taken, in bytes and in copies of the largest tensor: from the peak at
# 440x1024 with 6 updates, 2.3 GB.
_CALIBRATION_BASE, _CALIBRATION_COPIES = 1.3e9, 5.0

Sample = dict[str, np.ndarray]


class _Reduce(openvino.Op):  # type: ignore[misc]  # as OpenVINO has no types
    """Operation that lets one of NNCF's reducers compute a number from a tensor."""

    def __init__(self, reducer: OVQuantileReducer, inputs: list[openvino.Output]):
        super().__init__(self)
        self._reducer = reducer
        self.set_arguments(inputs)
        self.constructor_validate_and_infer_types()

    def validate_and_infer_types(self) -> None:
        shape = openvino.PartialShape([1] * len(self.get_input_shape(0)))
        self.set_output_type(0, self.get_input_element_type(0), shape)

    def clone_with_new_inputs(self, new_inputs: list[openvino.Output]) -> "_Reduce":
        return _Reduce(self._reducer, new_inputs)

    def has_evaluate(self) -> bool:
        return True

    def evaluate(self, outputs: list[openvino.Tensor], inputs: list[openvino.Tensor]) -> bool:
        (found,) = self._reducer._reduce_out_of_place([Tensor(inputs[0].data)])
        outputs[0].data[:] = found.data
        return True


class _QuantileInGraph(OVQuantileReducer):  # type: ignore[misc]  # as NNCF
    """NNCF's quantile, computed inside of the graph, where every tensor is freed after its last
    use. NNCF itself makes each of them an output of the model, and all exist at once.
    """

    inplace = True

    def get_inplace_fn(self) -> Callable[[openvino.Node, int, str], openvino.Node]:
        def insert(node: openvino.Node, port: int, name: str) -> openvino.Node:
            reduced = _Reduce(self, [node.output(port)])
            reduced.set_friendly_name(name)
            return reduced

        return insert


def _insert_outputs(
    model: openvino.Model, outputs: list[tuple[openvino.Output, int, None]]
) -> openvino.Model:
    """Let the numbers that NNCF adds come first among a model's results, in the order of the
    network: OpenVINO would otherwise compute them last, and keep every tensor until then.
    """
    operations = enumerate(model.get_ordered_ops())
    place = {operation.get_friendly_name(): number for number, operation in operations}

    def find_place(added: tuple[openvino.Output, int, None]) -> int:
        node = added[0].get_node()
        while node.get_friendly_name() not in place:
            node = node.input_value(0).get_node()
        return place[node.get_friendly_name()]

    made = _insert_outputs_last(model, sorted(outputs, key=find_place))
    results, count = made.get_results(), len(model.get_results())
    results = results[count:] + results[:count]
    return openvino.Model(results, made.get_sinks(), made.get_parameters(), made.friendly_name)


# No public setting reaches these two of NNCF (3.4.0); a test fails if it no longer asks them.
OV_REDUCERS_MAP[StatisticsType.QUANTILE] = _QuantileInGraph
_insert_outputs_last = OVModelTransformer._insert_outputs
OVModelTransformer._insert_outputs = staticmethod(_insert_outputs)


class _TrackedSamples:
    """Iterable of samples with a progress bar."""

    def __init__(self, samples: list[Sample], label: str):
        self._samples, self._label = samples, label

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[Sample]:
        return track(self._samples, label=self._label, unit="sample")


@contextmanager
def _quiet_rich() -> Iterator[None]:
    """Keep NNCF's own bars, which rich draws, out of saved notebooks and logs, where they stay as
    ``Output()``.

    Believing itself in a terminal or a notebook, rich would also catch what is printed meanwhile.
    """
    rich.reconfigure(quiet=True, force_jupyter=False, force_terminal=False)
    try:
        yield
    finally:
        rich.reconfigure()


def render_calibration_frames(
    height: int, width: int, *, pairs: int = CALIBRATION_PAIRS
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Render frames of this size, float32 (1, 3, H, W), RGB, 0..255, each pair in both orders.

    Both orders, because the two frames of a pair are encoded by the same weights and have to be
    rounded alike.
    """
    config = dataclasses.replace(
        load_config(RESOURCES / "params" / "train.yaml"), textures=TEXTURES, seed=CALIBRATION_SEED
    )
    phase = dataclasses.replace(
        config.phases[-1], height=height, width=width, max_displacement=LARGEST_DISPLACEMENT
    )
    source = PairSource(config)
    frames = []
    for number in track(range(pairs), label="render scenes to calibrate", unit="pair"):
        pair = source.render_pair(FIRST_SCENE + number, phase)
        image1, image2 = pair.image1.numpy()[None], pair.image2.numpy()[None]
        frames += [(image1, image2), (image2, image1)]
    return frames


def quantize_models(models: dict[Path, openvino.Model]) -> dict[Path, openvino.Model]:
    """Return the whole network and its parts, for a batch of one, in 8-bit integers; calibrated
    together, by the files they came from.
    """
    parts = {source.stem.removeprefix("gma").removeprefix("_"): source for source in models}
    height, width = list(models[parts[""]].input("image1").shape)[2:]
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    samples = collect_samples(
        render_calibration_frames(height, width),
        {  # unnamed, so that their memory is free afterwards
            name: _make_call(openvino.compile_model(models[source], "CPU", settings))
            for name, source in parts.items()
            if name
        },
    )
    return {
        source: quantize(models[source], samples[name], label=f"8-bit integers for {source.name}")
        if name in samples
        else models[source]
        for name, source in parts.items()
    }


def _make_call(compiled: openvino.CompiledModel) -> Callable[..., tuple[np.ndarray, ...]]:
    return lambda *inputs: tuple(np.array(value) for value in compiled(list(inputs)).values())


def collect_samples(
    frames: list[tuple[np.ndarray, np.ndarray]],
    run: dict[str, Callable[..., tuple[np.ndarray, ...]]],
) -> dict[str, list[Sample]]:
    """Collect the inputs, by name, that the network and its parts are calibrated with; none for a
    part that stays as it is.

    Parameters
    ----------
    frames
        From ``render_calibration_frames``.
    run
        The parts (``gma_lib.backends.base.PARTS``) in float32, as far as there are any.
    """
    samples: dict[str, list[Sample]] = {
        "": [{"image1": image1, "image2": image2} for image1, image2 in frames]
    }
    if not run.keys() >= set(PARTS):
        return samples
    samples |= {"context": [{"image": image} for image, _ in frames], "refine": []}
    for image1, image2 in track(frames, label="encode scenes to calibrate", unit="pair"):
        (features1,), (features2,), (context,) = (
            run["features"](image1),
            run["features"](image2),
            run["context"](image1),
        )
        start = np.zeros((1, 2, *features1.shape[2:]), np.float32)
        encoded = {"features1": features1, "features2": features2, "context": context}
        _, found = run["refine"](features1, features2, context, start)
        # cold and warm: a range from zero flow only would clip warm starts
        samples["refine"] += [encoded | {"flow_init": start}, encoded | {"flow_init": found}]
    return samples


def require_memory_to_calibrate(model: openvino.Model) -> None:
    """Raise ``MemoryError`` where calibration is predicted to need more than there is."""
    largest = max(
        4 * np.prod(list(output.shape))
        for operation in model.get_ordered_ops()
        for output in operation.outputs()
        if output.partial_shape.is_static
    )
    predicted, available = _CALIBRATION_BASE + _CALIBRATION_COPIES * largest, find_memory()
    if predicted > 0.9 * available:
        raise MemoryError(
            f"finding the ranges for 8-bit integers needs about {predicted / 1e9:.1f} GB at this "
            f"frame size; this machine has {available / 1e9:.1f} GB: smaller frames need less, and "
            "bfloat16 needs none of it"
        )


def quantize(model: openvino.Model, samples: list[Sample], *, label: str) -> openvino.Model:
    """Return the model with its convolutions, correlation and attention in 8-bit integers.

    Parameters
    ----------
    model
        In float32, for a batch of one.
    samples
        Inputs by name; their ranges become the model's.
    label
        Label of the progress bar.

    Raises
    ------
    MemoryError
        Before anything is computed, if the machine has too little memory.
    """
    require_memory_to_calibrate(model)
    nncf.set_log_level(logging.ERROR)
    lowest, highest = (
        StatisticsCollectorParameters(
            aggregator_type=aggregator,
            statistics_type=StatisticsType.QUANTILE,
            quantile_outlier_prob=_OUTLIERS,
        )
        for aggregator in (AggregatorType.MIN, AggregatorType.MAX)
    )
    ranges = RangeEstimatorParameters(min=lowest, max=highest)
    with _quiet_rich():
        found = nncf.quantize(
            model,
            nncf.Dataset(_TrackedSamples(samples, label)),
            subset_size=len(samples),
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(
                names=_find_float_products(model),
                patterns=list(_FLOAT_LAYERS),
                types=list(_FLOAT_OPERATIONS),
                validate=False,
            ),
            advanced_parameters=AdvancedQuantizationParameters(
                activations_range_estimator_params=ranges
            ),
        )
    _round_after_reshaping(found)
    attend_in_integers(found, samples)
    return found


def _find_float_products(model: openvino.Model) -> list[str]:
    """Names of the matrix products that calibration leaves alone: all but the correlation, which is
    one product for the whole frame.
    """
    counts = {
        operation.get_friendly_name(): np.prod(operation.output(0).shape[:-2])
        for operation in model.get_ordered_ops()
        if operation.get_type_name() == "MatMul"
    }
    return [name for name, count in counts.items() if count > 1 or "/" in name.lstrip("/")]


def _round_after_reshaping(model: openvino.Model) -> None:
    """Move the rounding of a matrix product's result behind the reshapes and transposes that
    follow.

    OpenVINO joins a rounding to the matrix product before it, and then computes the product in
    float32, at half of bfloat16's speed.
    """
    for rounding in list(model.get_ordered_ops()):
        if not _rounds_a_product(rounding):
            continue
        while (moved := _find_next_reshape(rounding)) is not None:
            after = list(moved.output(0).get_target_inputs())
            moved.input(0).replace_source_output(rounding.input_value(0))
            rounding.input(0).replace_source_output(moved.output(0))
            for target in after:
                target.replace_source_output(rounding.output(0))
    model.validate_nodes_and_infer_types()


def _rounds_a_product(node: openvino.Node) -> bool:
    """Whether a node rounds a matrix product with one range; a range per channel does not move
    through a transpose.
    """
    return bool(
        node.get_type_name() == "FakeQuantize"
        and node.input_value(0).get_node().get_type_name() == "MatMul"
        and all(np.prod(node.input_value(port).shape) == 1 for port in range(1, 5))
    )


def _find_next_reshape(node: openvino.Node) -> openvino.Node | None:
    """Return the reshape or transpose that alone reads a node."""
    readers = [target.get_node() for target in node.output(0).get_target_inputs()]
    alone = len(readers) == 1 and readers[0].get_type_name() in ("Reshape", "Transpose")
    return readers[0] if alone else None
