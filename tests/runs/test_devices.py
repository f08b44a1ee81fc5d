"""Each worker process has a device and cores of its own."""

import os
import signal
from functools import partial

import psutil
import pytest
from dying import die_at_first, meet, see

from gma_lib.runs import clusters, devices
from gma_lib.runs.clusters import compute_shards, open_cluster
from gma_lib.runs.devices import Devices, Place, share_machine

has_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="the system has no affinity"
)
TWO = Devices("CUDA_VISIBLE_DEVICES", lambda: ["3", "GPU-x"])


@has_affinity
def test_workers_share_the_cores(monkeypatch):
    """Each keeps its own, also when there are more workers than cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {8, 2, 5})
    assert [place.cores for place in share_machine(4, 1)] == [[2], [5], [8], [2]]
    assert [place.cores for place in share_machine(2, 2)] == [[2, 5], [8, 2]]
    assert share_machine(1, 3) == [Place([2, 5, 8])]


def test_without_affinity_the_devices_are_shared_all_the_same(monkeypatch):
    monkeypatch.delattr(devices.os, "sched_getaffinity", raising=False)
    assert share_machine(1, 2, TWO) == [Place([], {"CUDA_VISIBLE_DEVICES": "3"})]


def test_more_workers_than_devices_are_refused_before_one_starts():
    before = psutil.Process().children()
    for cluster in ("processes:3", "processes:9999"):
        with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES=3,GPU-x") as refused:
            open_cluster(cluster, TWO).__enter__()
        assert len(str(refused.value).splitlines()) == 1
    assert psutil.Process().children() == before


def test_one_process_alone_asks_for_no_device():
    """It computes on the first, as its runtime finds it."""
    with open_cluster("serial", Devices("NONE", lambda: pytest.fail("was asked"))) as workers:
        assert workers.executor is None


@has_affinity
@pytest.mark.exhaustive
@pytest.mark.parametrize("cluster", ["processes:2", "dask:local"])
def test_each_worker_has_its_own_device_before_a_runtime_starts(cluster, tmp_path, monkeypatch):
    """So has the one that replaces it."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with open_cluster(cluster, TWO) as workers:
        wanted = [
            (place.variables["CUDA_VISIBLE_DEVICES"], tuple(place.cores), False)
            for place in share_machine(2, workers.threads, TWO)
        ]
        for name in ("first", "again"):
            (tmp_path / name).mkdir()
            found = compute_shards(workers.executor, partial(meet, tmp_path / name), [1, 2])
            assert sorted(answer for _, answer in found) == wanted
            (tmp_path / f"killed {name}").mkdir()
            kill = partial(die_at_first, tmp_path / f"killed {name}", [signal.SIGKILL], os.getpid)
            workers.executor.submit(kill).result()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.exhaustive
def test_workers_of_a_scheduler_that_share_a_device_are_refused(monkeypatch):
    from distributed import Client, LocalCluster

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen = Devices("CUDA_VISIBLE_DEVICES", see)
    with LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
    ) as cluster:
        address = f"dask:{cluster.scheduler_address}"
        with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES") as refused:
            open_cluster(address, seen).__enter__()
        assert len(str(refused.value).splitlines()) == 1
        with Client(cluster, set_as_default=False) as client:
            client.register_plugin(clusters._keep_places(share_machine(2, 1, TWO)))
        with open_cluster(address, seen) as workers:
            assert workers.threads == 1
