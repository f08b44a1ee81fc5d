"""Workers of every kind: what they are refused for, and what happens when they die."""

import os
import platform
import re
import socket
import time
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from types import SimpleNamespace

import psutil
import pytest
from dying import die, name, refuse, sleep

from gma_lib.runs import clusters, pool
from gma_lib.runs.clusters import check_cluster, compute_alike, compute_shards, open_cluster


@pytest.mark.parametrize(
    "text",
    ["serial", "processes:1", "processes:64", "dask:local", "dask:tcp://10.0.0.1:8786", "dask:a:1"],
)
def test_what_cluster_may_be(text):
    check_cluster(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "Serial", "serial ", "serial\n", "ray:local"),
        *("processes", "processes:0", "processes:-1", "processes:2.5"),
        *("dask", "dask:", "dask:a", "dask:a b:1", "dask:tcp://a"),
    ],
)
def test_what_it_may_not(text):
    with pytest.raises(ValueError, match="processes:N"):
        check_cluster(text)


def test_without_dask_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(clusters, "find_spec", lambda name: None)
    check_cluster("processes:2")
    with pytest.raises(ValueError, match=re.escape("gma-lib[distributed]")):
        check_cluster("dask:local")


@pytest.mark.parametrize("executor", [None, ThreadPoolExecutor(2)])
def test_every_shard_has_its_own_answer(executor):
    found = dict(compute_shards(executor, name, range(20)))
    assert found == {number: hex(number) for number in range(20)}


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_shards_wait_for_dasks_workers_two_for_each(workers):
    """Also where the last worker has left for a while."""
    begun, handed_on, under_way = [], [], []

    class Counting(ThreadPoolExecutor):
        _client = SimpleNamespace(nthreads=lambda: dict.fromkeys(range(workers), 1))

        def submit(self, fn, /, *arguments):
            begun.append(arguments)
            under_way.append(len(begun) - len(handed_on))
            return super().submit(fn, *arguments)

    with Counting(1) as executor:
        for shard, _ in compute_shards(executor, name, range(20)):
            handed_on.append(shard)
    assert sorted(handed_on) == [*range(20)]
    assert max(under_way) == 2 * max(1, workers)


def test_other_software_is_refused_by_both_names():
    here = clusters.describe_software()
    assert compute_alike(here, name, 3, {}) == "0x3"
    for package, version in {"gma_lib": "0.0.7", "numpy-of-mine": "1"}.items():
        refused = compute_alike(here | {package: version}, name, 3, {})
        assert isinstance(refused, ValueError)
        said = rf"{package} is {here.get(package)} on .*, and {version} here"
        assert re.match(said, str(refused))


def test_a_worker_whose_code_has_changed_is_named(monkeypatch):
    here = clusters.describe_software()

    def refuse():
        raise RuntimeError("a.py changed after this process had loaded it")

    monkeypatch.setattr(clusters, "require_loaded_code", refuse)
    refused = compute_alike(here, name, 3, {})
    assert isinstance(refused, ValueError)
    assert platform.node() in str(refused)
    assert "a.py" in str(refused)


def test_another_file_of_the_package_is_other_software(tmp_path, monkeypatch):
    found = []
    for text in ("x = 1", "x = 1", "x = 2"):
        (tmp_path / "module.py").write_text(text)
        monkeypatch.setattr(clusters, "PACKAGE", tmp_path)
        found.append(clusters.describe_software.__wrapped__())
    assert found[0] == found[1] != found[2]


class Gone(Executor):
    """As Dask's, when its scheduler has been killed."""

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        future.cancel()
        future.set_running_or_notify_cancel()
        return future


def test_a_lost_scheduler_is_a_sentence():
    with pytest.raises(RuntimeError, match="scheduler") as refused:
        dict(compute_shards(Gone(), name, [1, 2]))
    assert isinstance(refused.value.__cause__, CancelledError)


def compute(cluster, function, shards):
    with open_cluster(cluster) as workers:
        assert workers.executor.submit(os.getpid).result() != os.getpid()
        return dict(compute_shards(workers.executor, function, shards))


@pytest.mark.slow
def test_a_shard_that_kills_its_workers_ends(messages):
    """It has three tries, and leaves no process."""
    with pytest.raises(RuntimeError, match="memory"):
        compute("processes:1", die, [1])
    assert sum("killed" in line for line in messages) == pool.TRIES
    assert not [one for one in list_children() if "spawn_main" in read_command(one)]


@pytest.mark.slow
def test_an_error_does_not_wait_for_the_other_shards():
    start = time.monotonic()
    with pytest.raises(TypeError):
        compute("processes:2", sleep, [60, "a"])
    assert time.monotonic() - start < 30


@pytest.mark.slow
def test_an_address_that_nobody_answers(monkeypatch):
    monkeypatch.setattr(clusters, "SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as taken:  # silent, as what is no scheduler may be
        address = "{}:{}".format(*taken.getsockname())
        with pytest.raises(OSError, match=address) as refused, open_cluster(f"dask:{address}"):
            pass
    assert len(str(refused.value).splitlines()) == 1


def list_children():
    return psutil.Process().children(recursive=True)


def read_command(process):
    """Empty for what has ended, waited for or not."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # a zombie among them
        return ""


@pytest.mark.exhaustive
def test_dask_on_this_machine_listens_to_it_alone():
    with open_cluster("dask:local") as workers:
        found = dict(compute_shards(workers.executor, name, range(5)))
        assert found == {number: hex(number) for number in range(5)}
        processes = [psutil.Process(), *list_children()]
        listening = [
            one.laddr.ip
            for process in processes
            for one in process.net_connections()
            if one.status == psutil.CONN_LISTEN
        ]
    assert len(listening) > workers.here
    assert set(listening) == {"127.0.0.1"}


@pytest.mark.exhaustive
@pytest.mark.parametrize("cluster", ["processes:1", "dask:local"])
def test_what_a_worker_is_refused_for_is_no_traceback_of_dask(cluster, capfd):
    with pytest.raises(OSError, match="no room for 1") as refused:
        compute(cluster, refuse, [1])
    assert "dying.py" in refused.value.__notes__[0]  # where it was raised, for who asks
    assert not capfd.readouterr().err


@pytest.mark.slow
def test_no_room_for_dasks_own_files(capfd):
    import dask

    with (
        dask.config.set({"temporary-directory": "/dev/full"}),  # where no folder can be made
        pytest.raises(OSError, match=r"/dev/full.*TMPDIR") as refused,
    ):
        open_cluster("dask:local").__enter__()
    assert len(str(refused.value).splitlines()) == 1
    assert not capfd.readouterr().err
