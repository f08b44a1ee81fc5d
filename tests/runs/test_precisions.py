"""Every runtime's names are of precisions that there are."""

import pytest
import torch

from gma_lib.runs.precisions import PRECISION_NAMES, PRECISIONS, refuse_precision


def test_names_are_of_known_precisions():
    for names in PRECISION_NAMES.values():
        assert set(names) <= set(PRECISIONS)
    assert all(isinstance(getattr(torch, name), torch.dtype) for name in PRECISIONS)


def test_a_precision_that_would_run_as_another_is_refused():
    refuse_precision("torch", "float32", ("float32",), "on cpu")
    with pytest.raises(ValueError, match=r"torch.*float32.*bfloat16.*int8.*on cpu"):
        refuse_precision("torch", "int8", ("float32", "bfloat16"), "on cpu")
