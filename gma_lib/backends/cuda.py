"""PyTorch on an NVIDIA GPU: the network in the form that suits one, its kernels recorded once, and
frames and flow copied while it computes.

What has been checked without a GPU, and what only one can tell: docs/gpu.md.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gma_lib.backends.base import Encoded, SplitBackend, check_frames
from gma_lib.backends.torch import load_network
from gma_lib.network import (
    DEPLOY_STEPS,
    GMA,
    Attention,
    BareAggregate,
    Encoder,
    ResidualBlock,
    to_deploy_form,
)
from gma_lib.runs import DoesNotFit, refuse_precision
from gma_lib.runs.devices import Devices

# In the first, cuDNN chooses its algorithms; PyTorch asks for a few before recording.
WARM_UP_CALLS = 3


@dataclass(frozen=True)
class CudaOptions:
    """How to run.

    Attributes
    ----------
    precision
        float32 (TF32 off), or bfloat16 / float16 with coordinates, flow, correlation and softmax
        sums in float32.
    device
        ``cuda``, ``cuda:1``, ...
    """

    precision: str = "float32"
    device: str = "cuda"

    def require(self) -> None:
        """Raise ValueError where this machine cannot compute so; needs no model."""
        refuse_precision(
            "cuda", self.precision, ("float32", "bfloat16", "float16"), "on an NVIDIA GPU"
        )
        if not torch.cuda.is_available():
            seen = os.environ.get(GPUS.variable)
            raise ValueError(
                "backend cuda needs an NVIDIA GPU that PyTorch can use; PyTorch "
                f"{torch.__version__} finds none"
                + ("" if seen is None else f" with {GPUS.variable}={seen}")
                + ". nvidia-smi says whether "
                "the driver sees one; a version that ends in +cpu has no CUDA (delete .venv and "
                "run make without TORCH_INDEX)"
            )


def list_gpus() -> list[str]:
    """GPUs that this process can use, as CUDA_VISIBLE_DEVICES names them: by number or UUID.

    Raises ValueError where there is none.
    """
    CudaOptions().require()
    count = torch.cuda.device_count()  # CUDA ends its list before the first that it cannot use
    named = os.environ.get(GPUS.variable, ",".join(map(str, range(count))))
    return [name.strip() for name in named.split(",")][:count]


GPUS: Devices = Devices("CUDA_VISIBLE_DEVICES", list_gpus)


# --- the network, rearranged ----------------------------------------------------------------------


class QueriesAndKeys(nn.Module):
    """What the attention matrix is made of, instead of the matrix: 198 MB less to store and to read
    for a Sintel frame.
    """

    def __init__(self, attention: Attention):
        super().__init__()
        self.to_qk = attention.to_qk

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Context (N, 128, h, w) -> queries and keys, (N, 1, P, 128) each."""
        queries, keys = self.to_qk(context).chunk(2, dim=1)
        return _as_tokens(queries), _as_tokens(keys)


class RecomputedAggregate(nn.Module):
    """``gma_lib.network.deploy.BareAggregate`` that computes the attention again in every update,
    inside one kernel.

    A fifth more multiplications than reading a stored matrix, and better numbers in float16:
    stored, most weights (1/7040 on average) would be near its smallest numbers, where few digits
    are left.
    """

    def forward(self, attention: tuple[Tensor, Tensor], motion: Tensor) -> Tensor:
        # scales by 1 / sqrt(128), as the paper does
        gathered = F.scaled_dot_product_attention(*attention, _as_tokens(motion))
        grid: Tensor = gathered.squeeze(1).unflatten(1, motion.shape[2:])
        return grid.permute(0, 3, 1, 2)  # channels last


def _as_tokens(grid: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, 1, P, C): one head, in the order in memory that the fused kernels ask
    for.
    """
    return grid.flatten(2).transpose(1, 2).unsqueeze(1).contiguous()


def fold_batch_norm(encoder: Encoder) -> None:
    """Move the context encoder's batch norms, which are fixed by now, into the convolutions before
    them.
    """
    for module in list(encoder.modules()):
        if isinstance(module, (Encoder, ResidualBlock)):
            for convolution, norm in (("conv1", "norm1"), ("conv2", "norm2")):
                if hasattr(module, norm):
                    _fold(module, convolution, norm)
        if isinstance(module, ResidualBlock) and module.downsample is not None:
            _fold(module.downsample, "0", "1")
            module.norm3 = nn.Identity()


def _fold(parent: nn.Module, convolution: str, norm: str) -> None:
    fused = nn.utils.fuse_conv_bn_eval(getattr(parent, convolution), getattr(parent, norm))
    setattr(parent, convolution, fused)
    setattr(parent, norm, nn.Identity())


class InstanceNorm(nn.Module):
    """The same as ``nn.InstanceNorm2d``, which lays its result out channels first and so has every
    convolution around it convert.
    """

    def forward(self, x: Tensor) -> Tensor:
        # over a batch of one, batch norm is instance norm
        normed = [F.batch_norm(one, None, None, training=True) for one in x.split(1)]
        return torch.cat(normed) if len(normed) > 1 else normed[0]


def replace_instance_norm(encoder: Encoder) -> None:
    """Let the feature encoder's norms keep channels last."""
    for module in list(encoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.InstanceNorm2d):
                module.add_module(name, InstanceNorm())


@torch.no_grad()
def rearrange_for_gpu(
    model: GMA, precision: str, steps: tuple[str, ...] = tuple(DEPLOY_STEPS)
) -> GMA:
    """A copy of the network that computes the same flow in the form that suits a GPU.

    Lean (the ``steps`` of ``gma_lib.network.deploy``), batch norms folded, channels last
    throughout. In half precision the convolutions keep their weights in it, so that autocast has
    nothing to convert, and content attention is recomputed instead of stored, unless aggregation is
    as published.
    """
    network = to_deploy_form(model, steps)
    fold_batch_norm(network.cnet)
    replace_instance_norm(network.fnet)
    if precision != "float32":
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.to(getattr(torch, precision))
        bare = isinstance(network.update_block.aggregator, BareAggregate)
        if bare and network.config.attention == "content":
            network.add_module("att", QueriesAndKeys(network.att))
            network.update_block.add_module("aggregator", RecomputedAggregate())
    # PyTorch declares no such overload
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


# --- recording ------------------------------------------------------------------------------------


class Recorded:
    """A function of tensors whose kernels are recorded for one set of shapes and then launched as
    one.

    At a batch of one the network is some hundred kernels of a few microseconds each, and a
    processor launches them slower than the GPU computes them.

    Parameters
    ----------
    function
        Takes and returns tensors on the device; must not look at their values or at the host's
        memory.
    inputs
        Examples of the shapes; their values are what the warm-up computes with.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...]):
        # The graph reads these places for ever: what is given later is copied there.
        self._inputs = tuple(torch.empty_like(given).copy_(given) for given in inputs)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP_CALLS):
                function(*self._inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Replay on these values; what is returned holds until the next call."""
        for place, given in zip(self._inputs, inputs, strict=True):
            place.copy_(given)
        self._graph.replay()
        return self._outputs


# --- running --------------------------------------------------------------------------------------


class CudaBackend(SplitBackend):
    """Runs ``gma.safetensors``; what it keeps between calls along a sequence stays on the GPU.

    The parts of a batch overlap: while one is computed, the next is on its way to the device and
    the one before on its way back.
    """

    def __init__(self, path: Path, options: CudaOptions | None = None):
        self.options = options or CudaOptions()
        self.options.require()
        self.precision = self.options.precision
        self._device = torch.device(self.options.device)
        self.device = torch.cuda.get_device_name(self._device)
        model, steps, self.at_once = load_network(path)
        if model.config.lookup != "grid_sample":
            # others read constants that may be gone when a recorded graph is replayed
            raise ValueError(
                f"{path} holds a network with lookup {model.config.lookup}; backend cuda runs "
                "grid_sample only: export it so, or use backend eager_cuda"
            )
        self._network: Any = rearrange_for_gpu(model, self.precision, steps).to(self._device)
        self._recorded: dict[tuple[object, ...], Recorded] = {}
        self._copies = torch.cuda.Stream(self._device)

    def predict(self, image1: np.ndarray, image2: np.ndarray) -> np.ndarray:
        image1, image2 = check_frames(image1, image2)
        size = self.at_once or len(image1)
        flows: list[np.ndarray] = []
        leaving: list[tuple[Tensor, torch.cuda.Event]] = []
        for first in range(0, len(image1), size):
            frames = [self._upload(image[first : first + size]) for image in (image1, image2)]
            leaving.append(self._start_download(self._replay(self._flow, *frames)[0]))
            if len(leaving) > 1:
                flows.append(_finish_download(*leaving.pop(0)))
        return np.concatenate([*flows, *(_finish_download(*one) for one in leaving)])

    def features(self, image: np.ndarray) -> Tensor:
        return self._replay(self._features, self._upload(image))[0].clone()

    def context(self, image: np.ndarray) -> Tensor:
        return self._replay(self._context, self._upload(image))[0].clone()

    def _compute(self, part: str, *given: Encoded) -> tuple[np.ndarray, ...]:
        # ``part`` is always refine: what the others return stays on the device
        results = self._replay(self._refine, *map(self._upload, given))
        leaving = [self._start_download(result) for result in results]
        return tuple(_finish_download(*one) for one in leaving)

    # Recorded: tensors on the device in and out.

    def _flow(self, image1: Tensor, image2: Tensor) -> tuple[Tensor, ...]:
        network = self._network
        encoded = network.features(image1), network.features(image2), network.context(image1)
        return (network.refine(*encoded)[0],)

    def _features(self, image: Tensor) -> tuple[Tensor, ...]:
        return (self._network.features(image),)

    def _context(self, image: Tensor) -> tuple[Tensor, ...]:
        return (self._network.context(image),)

    def _refine(
        self, features1: Tensor, features2: Tensor, context: Tensor, flow_init: Tensor
    ) -> tuple[Tensor, ...]:
        flow, coarse = self._network.refine(features1, features2, context, flow_init)
        return flow, coarse

    def _replay(
        self, function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        wanted = (function.__name__, *(tuple(given.shape) for given in inputs))
        with torch.inference_mode(), self._set_arithmetic(), torch.cuda.device(self._device):
            if wanted not in self._recorded:
                try:
                    self._recorded[wanted] = Recorded(function, inputs)
                except torch.OutOfMemoryError as error:
                    raise DoesNotFit(
                        f"{self.device} has too little memory to compute {len(inputs[0])} of these "
                        "at once; "
                        'at_once (PARAMS="at_once=1") computes a batch in smaller parts: '
                        f"{str(error).splitlines()[0]}"
                    ) from error
            return self._recorded[wanted](*inputs)

    @contextmanager
    def _set_arithmetic(self) -> Iterator[None]:
        """Autocast for half precision; TF32 then too, which holds bfloat16 and float16 exactly, but
        not their means in the pooled levels; neither for float32.
        """
        half = self.precision != "float32"
        products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
        before = products.allow_tf32, convolutions.allow_tf32, convolutions.benchmark
        products.allow_tf32 = convolutions.allow_tf32 = half
        convolutions.benchmark = True
        try:
            dtype = getattr(torch, self.precision) if half else None
            with torch.autocast(self._device.type, dtype=dtype, enabled=half, cache_enabled=False):
                yield
        finally:
            products.allow_tf32, convolutions.allow_tf32, convolutions.benchmark = before

    # Between host and device.

    def _upload(self, given: Encoded) -> Tensor:
        """Copy to the device while it computes; what is there already
        stays.
        """
        if isinstance(given, torch.Tensor):
            return given
        with torch.cuda.stream(self._copies):
            arrived = (
                torch.from_numpy(np.ascontiguousarray(given, np.float32))
                .pin_memory()
                .to(self._device, non_blocking=True)
            )
        now = torch.cuda.current_stream(self._device)
        now.wait_stream(self._copies)
        arrived.record_stream(now)  # its memory is given away only after what now reads it
        return arrived

    def _start_download(self, result: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        """Start the copy back; the event says when it is complete."""
        place = result.to(
            "cpu", torch.float32, non_blocking=True, copy=True
        )  # PyTorch takes pinned memory for such a copy
        landed = torch.cuda.Event()
        landed.record(torch.cuda.current_stream(self._device))
        return place, landed

    def device_bytes(self) -> int:
        return torch.cuda.max_memory_reserved(self._device)

    def close(self) -> None:
        self._recorded.clear()
        self._network = None


def _finish_download(place: Tensor, landed: torch.cuda.Event) -> np.ndarray:
    landed.synchronize()
    return np.array(place.numpy())
