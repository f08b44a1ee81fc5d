"""The machine is described."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from gma_lib.runs import machine


def test_memory_can_be_lowered_never_raised(monkeypatch):
    monkeypatch.delenv("GMA_MEMORY_BYTES", raising=False)
    found = machine.find_memory()
    assert found > 2**20
    monkeypatch.setenv("GMA_MEMORY_BYTES", "1000000")
    assert machine.find_memory() == 1_000_000
    monkeypatch.setenv("GMA_MEMORY_BYTES", str(2 * found))
    assert machine.find_memory() == found
    monkeypatch.setenv("GMA_MEMORY_BYTES", "4GB")
    with pytest.raises(ValueError, match="GMA_MEMORY_BYTES is a whole number of bytes, not '4GB'"):
        machine.find_memory()


def test_a_processor_is_known_by_its_instruction_sets_too(tmp_path, monkeypatch):
    told = "model name : AMD EPYC\nflags : fpu avx avx2 fma\n"
    found = []
    for text in (told, told.replace(" avx2", " avx2 avx512f"), told.replace("fpu ", "")):
        monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
        machine.CPUINFO.write_text(text)
        found.append(machine.identify_processor())
    assert found[0] == found[2] == "AMD EPYC (avx avx2 fma)"
    assert found[1] == "AMD EPYC (avx avx2 avx512f fma)"


@pytest.mark.parametrize(
    ("text", "is_fast"),
    [
        ("vendor_id : GenuineIntel\nflags : avx512_bf16\n", False),
        ("vendor_id : GenuineIntel\nflags : avx512_bf16 amx_bf16\n", True),
        ("vendor_id : AuthenticAMD\nflags : avx512_bf16\n", True),
        ("vendor_id : AuthenticAMD\nflags : avx2\n", False),
        ("Features : bf16\n", True),
        (None, True),
    ],
)
def test_bfloat16_is_fast_with_amx_and_on_amd_s_processors_that_have_it(
    tmp_path, monkeypatch, text, is_fast
):
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    if text:
        machine.CPUINFO.write_text(text)
    assert machine.is_bfloat16_fast() == is_fast


def test_what_keeps_libraries_from_instructions_is_part_of_the_processor(monkeypatch):
    for name in machine.LIMITS:
        monkeypatch.delenv(name, raising=False)
    before, computing = machine.identify_processor(), machine.describe_computing()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert machine.identify_processor() != before
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in machine.describe_computing()["instruction set"]
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert machine.describe_computing() == computing


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("150000 100000", 2), ("100000 100000", 1), ("5000 100000", 1), ("max 100000", 4), (None, 4)],
)
def test_cores_are_those_of_the_container(tmp_path, monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(machine, "QUOTA", tmp_path / "cpu.max")
    if quota:
        machine.QUOTA.write_text(f"{quota}\n")
    assert machine.count_cores() == cores


def test_opencv_s_version_is_that_of_the_module(monkeypatch):
    """Another distribution may have been installed over this one."""
    name = "opencv-python-headless"
    installed = machine.metadata.version(name)
    assert machine.find_versions()[name] == installed
    monkeypatch.setattr(machine.cv2, "__version__", "4.12.0")
    assert machine.find_versions()[name] == "4.12.0"


@pytest.mark.parametrize(
    ("loaded", "known"),
    [
        ("2.13.0", True),
        ("2.13.0.dev1", False),
        ("2.13.0rc1", False),
        ("2.1", False),
        ("2.14", False),
    ],
)
def test_the_version_is_that_of_the_loaded_module(monkeypatch, loaded, known):
    """pip may have replaced its files since; its metadata may say more, or less, of one version."""
    monkeypatch.setattr(machine.metadata, "version", lambda _: "2.13.0+cpu")
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__=loaded))
    if "2.13.0" in loaded and not known:
        monkeypatch.setattr(machine.metadata, "version", lambda _: "2.13.0")
    expected = machine.metadata.version("torch") if known else loaded
    assert machine.find_versions(["torch"]) == {"torch": expected}


def test_a_library_may_be_of_another_distribution(tmp_path, monkeypatch):
    """Such as onnxruntime-gpu; an interrupted pip leaves metadata without a version."""
    (tmp_path / "fast_library").mkdir()
    (tmp_path / "fast_library" / "__init__.py").touch()
    other = tmp_path / "fast_library_gpu-3.2.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Name: fast-library-gpu\nVersion: 3.2\n")
    (other / "RECORD").write_text("fast_library/__init__.py,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert machine.find_versions(["fast_library"]) == {"fast_library": "3.2"}
    broken = tmp_path / "fast_library-3.1.dist-info"
    broken.mkdir()
    assert machine.find_versions(["fast_library"]) == {"fast_library": "3.2"}
    (other / "RECORD").unlink()
    assert machine.find_versions(["fast_library"]) == {"fast_library": "unknown"}


def test_versions_name_what_is_installed():
    assert set(machine.find_versions(("numpy", "no-such-package"))) == {"numpy"}


def test_the_commit_is_this_project_s(tmp_path, monkeypatch):
    """Not that of another repository whose hook runs, or that holds a copy of this one."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)  # the user may sign commits
    mine = machine.find_commit()
    other = tmp_path / "other"
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run([*git, "init", "-q", str(other)], check=True)
    empty = ("commit", "-q", "--allow-empty", "-m", "other")
    subprocess.run([*git, "-C", str(other), *empty], check=True)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert machine.find_commit() == mine
    monkeypatch.delenv("GIT_DIR")
    monkeypatch.setattr(machine, "IN_CHECKOUT", True)
    monkeypatch.setattr(machine, "PROJECT", other)
    assert machine.find_commit() is not None
    (other / "copy").mkdir()
    monkeypatch.setattr(machine, "PROJECT", other / "copy")
    assert machine.find_commit() is None


def test_a_checkout_whose_state_git_cannot_tell_is_not_called_clean(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)  # the user may sign commits
    git = ("git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "a.py").touch()
    subprocess.run([*git, "add", "a.py"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    monkeypatch.setattr(machine, "IN_CHECKOUT", True)
    monkeypatch.setattr(machine, "PROJECT", tmp_path)
    commit = machine.find_commit()
    assert commit.isalnum()
    (tmp_path / "a.py").write_text("changed = 1")
    assert machine.find_commit() == f"{commit}+changes"
    (tmp_path / "a.py").write_text("")
    assert machine.find_commit() == commit
    (tmp_path / "b.py").touch()
    subprocess.run([*git, "config", "status.showUntrackedFiles", "no"], check=True)
    assert machine.find_commit() == f"{commit}+changes"
    (tmp_path / ".git/index").write_bytes(b"damaged")
    assert machine.find_commit() == f"{commit}+unknown"


def test_a_processor_without_more_than_numpy_needs_is_described(monkeypatch):
    """NumPy leaves an empty list out."""
    monkeypatch.setattr(machine.np, "show_config", lambda mode: {"SIMD Extensions": {}})
    assert "numpy ;" in machine.describe_computing()["instruction set"]
    monkeypatch.setattr(machine.np, "show_config", lambda mode: {})
    assert machine.describe_computing()["threads"]


def test_jobs_with_a_temporary_folder_of_their_own_share_the_machine_s_lock(monkeypatch, tmp_path):
    mine = machine.locate_machine_lock()
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert machine.locate_machine_lock() == mine
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # of another user, or of the tests
    assert machine.locate_machine_lock().is_relative_to(tmp_path)


@pytest.mark.parametrize("runtime", [None, "", "/proc/none", "file/inside"])
def test_where_no_folder_is_the_user_s_the_lock_lies_in_the_temporary_one(runtime, tmp_path):
    """As under cron, in a batch job and in a container, which keep the variable of a session."""
    code = "from gma_lib.runs.machine import locate_machine_lock; print(locate_machine_lock())"
    (tmp_path / "file").touch()
    variables = {name: text for name, text in os.environ.items() if name != "XDG_RUNTIME_DIR"}
    if runtime is not None:
        variables["XDG_RUNTIME_DIR"] = runtime and str(tmp_path / runtime)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=variables
    )
    assert done.stderr == ""
    folder = Path(done.stdout.strip()).parents[1]
    assert folder.is_dir()
    assert not folder.is_relative_to(tmp_path)
