"""Every runtime's names are of precisions that there are."""

from contextlib import nullcontext

import pytest
import torch

from gma_lib.backends.torch import refuse_less_than_float32
from gma_lib.runs.precisions import PRECISION_NAMES, PRECISIONS, refuse_precision


def test_names_are_of_known_precisions():
    for names in PRECISION_NAMES.values():
        assert set(names) <= set(PRECISIONS)
    assert all(isinstance(getattr(torch, name), torch.dtype) for name in PRECISIONS)


def test_a_precision_that_would_run_as_another_is_refused():
    refuse_precision("torch", "float32", ("float32",), "on cpu")
    with pytest.raises(ValueError, match=r"torch.*float32.*bfloat16.*int8.*on cpu"):
        refuse_precision("torch", "int8", ("float32", "bfloat16"), "on cpu")


@pytest.mark.parametrize(("mode", "is_strict"), [("BF16", False), ("any", False), ("strict", True)])
@pytest.mark.parametrize("name", ["ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"])
def test_float32_that_the_environment_makes_less_precise_is_refused(
    monkeypatch, name, mode, is_strict
):
    """No runtime reads it back."""
    monkeypatch.setenv(name, mode)
    for ask in (
        lambda: refuse_precision("torch", "float32", ("float32",), "on cpu"),
        refuse_less_than_float32,
    ):
        with nullcontext() if is_strict else pytest.raises(ValueError, match=name):
            ask()
