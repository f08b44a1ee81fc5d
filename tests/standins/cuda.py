"""Takes the place of ``torch.cuda`` on a machine without a GPU: what is recorded is repeated on the
same memory, as a CUDA graph does.

After PyTorch's notes on CUDA graphs
(https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs): a graph repeats the kernels that
ran while it was recorded, reads its inputs where they were then, writes its results where they were
then, and runs no Python. Streams and events order nothing here, where every operation is complete
when it returns.
"""

from contextlib import contextmanager, nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class CUDAGraph:
    def __init__(self):
        self.operations = None

    def replay(self):
        if self.operations is None:
            raise RuntimeError("replayed before it was recorded")
        for operation, given, named, result in self.operations:
            again = operation(*given, **named)
            for place, value in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if (
                    isinstance(place, torch.Tensor) and place.data_ptr() != value.data_ptr()
                ):  # neither a view nor changed in place
                    place.copy_(value)


class _Recording(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, operation, types, given=(), named=None):
        named = named or {}
        result = operation(*given, **named)
        self.operations.append((operation, given, named, result))
        return result


@contextmanager
def graph(recorded):
    with _Recording() as recording:
        yield
    recorded.operations = recording.operations


class Stream:
    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass


class Event:
    def __init__(self):
        self.recorded = False

    def record(self, stream=None):
        self.recorded = True

    def synchronize(self):
        if not self.recorded:
            raise RuntimeError("waited for an event that was never recorded")


def install(monkeypatch):
    """Put these into ``torch.cuda`` until the test ends."""
    for name, value in {
        "CUDAGraph": CUDAGraph,
        "graph": graph,
        "Stream": Stream,
        "Event": Event,
        "stream": lambda stream: nullcontext(),
        "current_stream": lambda device=None: Stream(),
        "device": lambda device: nullcontext(),
        "is_available": lambda: True,
        "get_device_name": lambda device=None: "no GPU, a stand-in",
        "max_memory_reserved": lambda device=None: 0,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
