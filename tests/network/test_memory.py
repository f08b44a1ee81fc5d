"""Memory is predicted from batch and frame size, and what does not fit is refused."""

import pytest

from gma_lib.network.memory import predict_memory, require_memory
from gma_lib.runs.run import DoesNotFit


def test_prediction_grows_with_batch_and_frame():
    one = predict_memory("openvino", "float32", 1, 440, 1024)
    assert 0.6e9 < one < 1.5e9
    assert predict_memory("openvino", "float32", 16, 440, 1024) > 8 * one
    assert predict_memory("openvino", "float32", 1, 880, 2048) > 8 * one
    # pair by pair, only frames and flow come on top: 18 MB a pair
    assert predict_memory("openvino", "float32", 16, 440, 1024, at_once=1) == pytest.approx(
        one + 15 * 18.02e6, rel=1e-3
    )
    assert predict_memory("something", "float32", 1, 440, 1024) is None


def test_what_would_not_fit_is_refused():
    size = ("onnxruntime", "float32", 2, 128, 160)
    with pytest.raises(DoesNotFit, match=r"batch size 2 on onnxruntime in float32 .* GB"):
        require_memory(*size, available_bytes=10**8)
    assert require_memory(*size, available_bytes=10**11) == predict_memory(*size)
