"""Whether a rewritten graph is the same computation as before."""

import numpy as np
import onnx
from onnx import ModelProto, helper


class RewriteError(RuntimeError):
    """The rewritten graph is not what it has to be; nothing was written."""


def verify(
    before: ModelProto,
    after: ModelProto,
    *,
    feeds: dict[str, np.ndarray] | None = None,
    largest_batch: int | None = None,
) -> None:
    """Raise ``RewriteError`` unless ``after`` is valid, loads in ONNX Runtime, keeps its inputs and
    outputs, and computes the same numbers.

    ``largest_batch`` as for ``rewrite_file``.
    """
    import onnxruntime

    try:
        onnx.checker.check_model(after, full_check=True)
        onnx.shape_inference.infer_shapes(after, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RewriteError(
            f"the rewritten graph is not valid ONNX: {get_first_line(error)}"
        ) from error
    for label in ("input", "output"):
        kept, wanted = (
            [(value.name, value.type) for value in getattr(model.graph, label)]
            for model in (after, before)
        )
        if kept != wanted:
            raise RewriteError(f"the rewritten graph has other {label}s than the original")
    if largest_batch is not None:
        before, after = (_with_batch_at_most(model, largest_batch) for model in (before, after))
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    sessions = []
    for label, model in (("original", before), ("rewritten", after)):
        try:
            sessions.append(
                onnxruntime.InferenceSession(
                    model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
                )
            )
        except Exception as error:  # ONNX Runtime raises another class for each cause
            hint = "; name the operator in leave=" if label == "rewritten" else ""
            raise RewriteError(
                f"ONNX Runtime does not load the {label} graph: {get_first_line(error)}{hint}"
            ) from error
    feeds = make_random_feeds(before) if feeds is None else feeds
    expected, found = (session.run(None, feeds) for session in sessions)
    for value, wanted, got in zip(before.graph.output, expected, found, strict=True):
        same = (
            np.array_equal(wanted, got)
            if wanted.dtype.kind != "f"
            else np.allclose(wanted, got, rtol=1e-4, atol=1e-4, equal_nan=True)
        )
        if not same:
            raise RewriteError(
                f"output {value.name} of the rewritten graph has other values than before"
            )


def _with_batch_at_most(model: ModelProto, largest: int) -> ModelProto:
    result = ModelProto()
    result.CopyFrom(model)
    for value in [*result.graph.input, *result.graph.output]:
        batch = value.type.tensor_type.shape.dim[0]
        batch.dim_value = min(batch.dim_value, largest)
    del result.graph.value_info[:]
    return result


def make_random_feeds(model: ModelProto) -> dict[str, np.ndarray]:
    """Reproducible inputs of the declared shapes: 0..255 for numbers with a fraction, 0 and 1 for
    whole ones.
    """
    rng = np.random.default_rng(0)
    constants = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name in constants:
            continue
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if 0 in shape:
            raise ValueError(
                f"input {value.name} has no fixed shape: hand over feeds to compare the graphs with"
            )
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feeds[value.name] = (
            rng.random(shape) * 255 if dtype.kind == "f" else rng.integers(0, 2, shape)
        ).astype(dtype)
    return feeds


def get_first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
