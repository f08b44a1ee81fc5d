"""The number formats that a network can run in, and what each runtime calls them."""

import os

PRECISIONS = ("float32", "bfloat16", "float16", "int8")

# Runtime -> precision -> its name there. PyTorch uses our names: getattr(torch, precision).
PRECISION_NAMES: dict[str, dict[str, str | None]] = {
    # int8: convolutions as the model was calibrated, everything between them in bfloat16
    "openvino": {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "int8": "bf16"},
    # OPTIMIZATION_CAPABILITIES of its devices
    "openvino_device": {"float32": "FP32", "bfloat16": "BF16", "float16": "FP16"},
    # precision_mode of ONNX Runtime's CANNExecutionProvider
    "cann": {"float32": "must_keep_origin_dtype", "float16": "force_fp16"},
    # --precision_mode of atc; None: not passed, as in the guide, which means force_fp16
    "atc": {"float16": None, "float32": "must_keep_origin_dtype"},
}


# --precision_mode_v2 of atc, from CANN 7.0 on -> precision of what is not kept in float32
PRECISIONS_V2 = {
    **{mode: "float16" for mode in ("fp16", "mixed_float16", "cube_fp16in_fp32out")},
    "origin": "float32",
}


def read_back_precision(mode: str | None, mode_v2: str | None) -> str:
    """Return the precision that atc was told with ``precision_mode`` or ``precision_mode_v2``."""
    if mode_v2:
        return PRECISIONS_V2[mode_v2]
    return next(
        (name for name, known in PRECISION_NAMES["atc"].items() if known == mode), str(mode)
    )


def refuse_precision(backend: str, precision: str, possible: tuple[str, ...], why: str) -> None:
    """Raise ValueError for a precision that would silently run as another one."""
    if backend in ("openvino", "torch"):
        require_strict_float32()
    if precision not in possible:
        raise ValueError(
            f"{backend} here computes in {' or '.join(possible)}, not {precision}: {why}"
        )


def require_strict_float32() -> None:
    """Raise ValueError where the environment lets oneDNN, which OpenVINO and PyTorch compute with,
    round the products of float32 to fewer bits.
    """
    for name in ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"):
        if os.environ.get(name, "").upper() not in ("", "STRICT"):
            raise ValueError(
                f"{name}={os.environ[name]} makes oneDNN compute float32 less precisely: unset it"
            )
