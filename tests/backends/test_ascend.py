"""The Ascend backend, with stand-ins for the tools."""

import os
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
from ascend_tools import SHAPE

from gma_lib.ascend import Card, ais_bench
from gma_lib.backends import ascend as backend
from gma_lib.backends import find_backend
from gma_lib.infer.inference import infer, read_hashes
from gma_lib.infer.shards import StoredModel
from gma_lib.runs import hash_files
from gma_lib.runs.clusters import open_cluster


def test_no_room_for_outputs(om, standins, monkeypatch):
    """A full disk is reported before anything is launched."""
    with backend.AscendBackend(om, backend.AscendOptions()) as network:
        monkeypatch.setattr(
            shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000)
        )
        monkeypatch.setattr(
            ais_bench, "run_tool", lambda *arguments, **settings: pytest.fail("was launched")
        )
        with pytest.raises(OSError, match=r"needs 0\.\d MB"):
            network.predict(*np.zeros((2, 2, *SHAPE), np.float32))


@pytest.mark.parametrize("generation", ["T", "N"])
def test_a_backend_where_the_group_may_write(om, standins, generation):
    """The backend sets modes itself: with umask 002 the newer tool would refuse its files."""
    standins.setenv("STANDIN_GENERATION", generation)
    before = os.umask(0o002)
    try:
        with backend.AscendBackend(om, backend.AscendOptions()) as network:
            image1 = np.zeros((2, *SHAPE), np.float32)
            flow = network.predict(image1, image1 + np.array([3, 4, 5], np.float32)[:, None, None])
    finally:
        os.umask(before)
    assert flow.shape == (2, 2, 128, 160)
    assert np.unique(flow[:, 0]) == 3
    assert np.unique(flow[:, 1]) == 4
    assert network.simulated


def test_models_that_the_backend_refuses(om, standins):
    """--soc_version: not portable; an .om without its own manifest, or of
    another precision, is none.
    """
    options = backend.AscendOptions()
    with pytest.raises(ValueError, match=r"float16.*float32.*03_convert"):
        backend.AscendBackend(om, replace(options, precision="float32"))
    with pytest.raises(ValueError, match="bfloat16"):
        backend.AscendBackend(om, replace(options, precision="bfloat16"))
    standins.setenv("STANDIN_SOC", "310P1")
    with pytest.raises(
        ValueError,
        match=r"Ascend310P3.*Ascend310P1.*03_convert",
    ):
        backend.AscendBackend(om, options)
    standins.setenv("STANDIN_SOC", "310P3")
    om.write_bytes(om.read_bytes() + b"more")
    with pytest.raises(ValueError, match="do not belong together"):
        backend.AscendBackend(om, options)
    om.with_suffix(".om.json").write_text("{")
    with pytest.raises(ValueError, match="do not belong together"):
        backend.AscendBackend(om, options)
    om.unlink()
    with pytest.raises(FileNotFoundError, match="run 03_convert first"):
        backend.AscendBackend(om, options)


@pytest.mark.parametrize(
    ("smi", "visible", "found"),
    [
        ("310P", None, ["0", "1"]),
        ("310P", "1", ["1"]),
        ("310P", "1, 0", ["1", "0"]),
        ("310P", "1,7", ["1"]),
        ("nodriver", "4,5", ["4", "5"]),
    ],
)
def test_cards_for_worker_processes(standins, smi, visible, found):
    """Those that are there of those that may be seen; npu-smi lists all of the machine."""
    standins.setenv("STANDIN_NPU_SMI", smi)
    if visible:
        standins.setenv(backend.VISIBLE, visible)
    devices = find_backend("ascend").devices(card=Card())
    assert devices.variable == "ASCEND_RT_VISIBLE_DEVICES"
    assert pickle.loads(pickle.dumps(devices)).find() == found


def test_no_card_for_worker_processes(standins):
    """None is visible, none is there, or one was chosen for all; a dry run needs none."""
    for card, smi, visible in (
        (Card(), "310P", "7"),
        (Card(), "nodriver", ""),
        (Card(device=1), "310P", "1"),
    ):
        standins.setenv("STANDIN_NPU_SMI", smi)
        standins.setenv(backend.VISIBLE, visible)
        with pytest.raises(ValueError, match="ASCEND_RT_VISIBLE_DEVICES") as refused:
            find_backend("ascend").devices(card=card).find()
        assert len(str(refused.value).splitlines()) == 1
    assert find_backend("ascend").devices(card=Card(dry_run="x")) is None


@pytest.mark.exhaustive
def test_two_workers_with_a_card_each(om, standins, pairs, tmp_path):
    """Each tells the tool device 0, which is the only one that it sees."""
    device = "Ascend310P3 (SIMULATED)"
    model = StoredModel("ascend", om.parent, "float16", hash_files(om.parent.iterdir()), device)
    infer(pairs, model, tmp_path / "serial", batch_size=2, key="k")
    with open_cluster("processes:2", find_backend("ascend").devices(card=Card())) as workers:
        more = {"batch_size": 2, "key": "k", "executor": workers.executor}
        summary = infer(pairs, model, tmp_path / "workers", **more)
    assert summary.computed == len(pairs)
    assert read_hashes(tmp_path / "workers") == read_hashes(tmp_path / "serial")
