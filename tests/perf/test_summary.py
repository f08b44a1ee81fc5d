"""Statistics and sentences of measurements."""

import re

import pytest

from gma_lib import network, runs
from gma_lib.perf import summary
from gma_lib.perf.summary import (
    advise,
    advise_run,
    describe_costs,
    describe_speed,
    find_peak_memory,
    find_usable_peak,
    load_precisions,
    scale_parts,
    summarize,
    tabulate_measurement,
)


def test_statistics_of_known_times():
    found = summarize([1.0, 2.0, 3.0, 4.0, 100.0], batch_size=6)
    assert (found["median_s"], found["pairs_per_second"], found["rounds"]) == (3, 2, 5)
    assert found["spread"] == pytest.approx(2 / 3)
    assert "only 5 rounds" in found["caution"]
    assert "unstable" in found["caution"]
    assert summarize([1.0] * 20, batch_size=1)["caution"] == ""


def test_the_memory_that_limits_a_batch_is_the_gpu_s_if_there_is_one():
    assert find_peak_memory({"peak_rss_bytes": 3, "peak_device_bytes": None}) == 3
    assert find_peak_memory({"peak_rss_bytes": 3, "peak_device_bytes": 2}) == 2
    assert find_peak_memory({}) is None


def test_advice_needs_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "PRECISION_RESULTS", tmp_path / "nothing.json")
    assert advise_run("openvino", {}) == advise(load_precisions()) == "not measured: make bench"


def test_advice_belongs_to_the_weights():
    dear = {"families": {"layers": {"px1_loss": 0.5, "epe_loss": 0.02}}, "recommended": False}
    cheap = {"families": {"layers": {"px1_loss": 0.0, "epe_loss": 0.001}}, "recommended": True}
    about = {"weights": "seeded", "precisions": {"bfloat16": cheap, "int8": dear}}
    about |= {"backend": "openvino", "num_updates": 6}
    assert "measured with other weights" in advise(about | {"weights_sha256": "of others"})
    of_a_file = about | {"weights": "mine", "weights_sha256": "of mine"}
    assert "not bundled" in advise(of_a_file)
    assert "int8 is not recommended for mine on openvino" in describe_costs(of_a_file)
    seeded = network.load_checkpoint("seeded").sha256
    for_bfloat16, for_int8 = advise(about | {"weights_sha256": seeded}).split(". ")
    for line in (for_bfloat16, for_int8):
        assert {"seeded", "openvino", "6"} <= set(line.split())
    assert "bfloat16 is recommended" in for_bfloat16
    assert "int8 is not recommended" in for_int8
    assert re.findall(r"\+[\d.]+", for_bfloat16) == ["+0.00", "+0.1"]
    assert re.findall(r"\+[\d.]+", for_int8) == ["+0.50", "+2.0"]


def test_advice_is_not_given_for_what_was_not_measured():
    bundled = {"sha256": network.load_checkpoint("gma-procedural").sha256}
    exported = {"num_updates": 6, "checkpoint": bundled}
    assert "recommended" in advise_run("openvino", exported)
    for backend in ("ascend", "cuda", "onnxruntime", "torch"):
        assert "Not measured" in advise_run(backend, exported)
    for other in ({"num_updates": 12}, {"checkpoint": {"sha256": "of seeded weights"}}):
        assert "Not measured" in advise_run("openvino", exported | other)


@pytest.mark.parametrize(("has", "is_fast"), [(True, True), (True, False), (False, False)])
def test_advice_tells_what_this_processor_lacks(monkeypatch, has, is_fast):
    bundled = {"sha256": network.load_checkpoint("gma-procedural").sha256}
    monkeypatch.setattr(runs, "has_bf16", lambda: has)
    monkeypatch.setattr(runs, "is_bfloat16_fast", lambda: is_fast)
    advice = advise_run("openvino", {"num_updates": 6, "checkpoint": bundled})
    assert advice.endswith(advise(load_precisions()))
    assert (advice == advise(load_precisions())) == is_fast
    assert ("AMX" in advice) != has


def test_parts_are_shares_of_the_median_call():
    perf = {"parts_s": {"GRU": 6.0, "lookup": 3.0}, "median_s": 3.0, "batch_size": 2}
    assert scale_parts(perf) == pytest.approx({"GRU": 1.0, "lookup": 0.5})
    assert scale_parts({"parts_s": None}) == scale_parts({}) == {}


@pytest.mark.parametrize(("share", "usable"), [(0.9, 1e12), (1.2, None), (None, 1e12)])
def test_no_peak_below_the_model_s_own_rate(share, usable):
    assert find_usable_peak({"matrix_product_peak": 1e12, "share_of_peak": share}) == usable
    assert find_usable_peak({"share_of_peak": None}) is None  # a card has none


def test_speed_in_a_sentence():
    perf = {"status": "ok", "pairs_per_second": 0.62, "median_s": 1.6, "batch_size": 1}
    perf |= {"caution": "", "peak_rss_bytes": 5.9e9, "parts_s": {"GRU": 3.0, "lookup": 1.0}}
    told = describe_speed(perf)
    for number in ("0.62 pairs/s", "1.60 s", "5.9 GB", "GRU, with 75%"):
        assert number in told
    assert "only 3 rounds" in describe_speed(perf | {"caution": "only 3 rounds"})
    on_a_card = {name: perf[name] for name in perf if name not in ("peak_rss_bytes", "parts_s")}
    assert "GB" not in describe_speed(on_a_card)
    assert "too large" in describe_speed({"status": "out_of_memory", "reason": "too large"})


@pytest.mark.parametrize(
    ("share", "told"), [(0.876, "88%"), (1.52, "not usable"), (None, "not measured")]
)
def test_a_share_above_the_peak_is_not_shown(share, told):
    numbers = dict.fromkeys(("median_s", "p90_s", "pairs_per_second", "spread"), 1.0)
    numbers |= dict.fromkeys(("peak_rss_bytes", "load_s", "first_call_s"), 1.0)
    perf = numbers | {"status": "ok", "batch_size": 1, "share_of_peak": share, "rounds": 3}
    perf |= {"at_once": 1, "precision_read_back": "float32", "predicted_bytes": None}
    rows = {what: here for what, here, _ in tabulate_measurement(perf)}
    assert rows["share of the matrix-product peak"].startswith(told)
    assert "152" not in rows["share of the matrix-product peak"]
