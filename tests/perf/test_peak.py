"""Peaks of matrix products: the best library at hand counts."""

import time

import numpy as np
import pytest

from gma_lib.perf import peak


def test_matrix_product_peak():
    assert peak.measure_peak("float32", size=256, rounds=3) > 1e8
    assert peak.measure_peak("int8") is None


def test_the_best_library_counts(monkeypatch):
    """A slow one beside a fast one changes nothing."""

    def slow(a, b, precision):
        return lambda: time.sleep(0.2)

    fast = peak.measure_peak("float32", size=256, rounds=3)
    monkeypatch.setattr(peak, "PRODUCTS", {"cpu": (slow,)})
    slow_only = peak.measure_peak("float32", size=256, rounds=3)
    monkeypatch.setattr(peak, "PRODUCTS", {"cpu": (slow, peak._make_numpy_product)})
    both = peak.measure_peak("float32", size=256, rounds=3)
    assert fast > 5 * slow_only
    assert both > 5 * slow_only


def test_openvino_offers_its_capabilities():
    """Their names decide which precision is measured."""
    a = np.ones((4, 4), np.float32)
    assert peak._make_openvino_product(a, a, "float32")()[0] == pytest.approx(4 * a)
    assert peak._make_openvino_product(a, a, "int8") is None
