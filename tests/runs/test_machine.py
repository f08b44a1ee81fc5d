"""The machine is described."""

from gma_lib.runs import machine


def test_memory_can_be_lowered_never_raised(monkeypatch):
    monkeypatch.delenv("GMA_MEMORY_BYTES", raising=False)
    found = machine.find_memory()
    assert found > 2**20
    monkeypatch.setenv("GMA_MEMORY_BYTES", "1000000")
    assert machine.find_memory() == 1_000_000
    monkeypatch.setenv("GMA_MEMORY_BYTES", str(2 * found))
    assert machine.find_memory() == found


def test_versions_name_what_is_installed(monkeypatch):
    monkeypatch.setattr(machine, "VERSIONED", ("numpy", "no-such-package"))
    assert set(machine.find_versions()) == {"numpy"}
