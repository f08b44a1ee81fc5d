"""Load bundled weights and weights files: strictly, without running pickled code, and with the
SHA-256 of what was loaded.

The authors publish theirs in their repository (https://github.com/zacjiang/GMA at 2f1fd29) as
``checkpoints/gma-sintel.pth`` and others; this package cannot redistribute them. Give the file's
path as the checkpoint.
"""

import hashlib
import io
import json
import pickletools
import warnings
import zipfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, cast

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gma_lib.network.bundled import (
    SEEDED_GAMMA,
    WEIGHTS_FOLDER,
    find_bundled,
    read_card,
    require_bundled,
)
from gma_lib.network.model import GMA, GMAConfig
from gma_lib.network.sizes import SEEDED
from gma_lib.runs.files import (
    BadFile,
    MissingFile,
    hash_value,
    locate_path,
    read_whole,
    reading,
    write_atomically,
)
from gma_lib.runs.records import Record

SEED = 20210402
WRAPPERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile, Lightning
LONGEST_PREFIX = 4
FEWEST_ENTRIES = 10  # of a second set of weights
MOST_WRAPPERS = 4  # around one set of weights
MOST_BYTES = 2**28  # of a file; ours have 24 million, with a training's state three times that
COUNTER = "num_batches_tracked"  # of a norm, for training alone
LONGEST_NAME = 200  # of a class in a pickle
PICKLES = 5  # one after another in files of PyTorch before 1.6
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Checkpoint:
    """Weights and what is known about them.

    Attributes
    ----------
    name
        A bundled name, or the file's stem.
    source
        Argument of ``load_checkpoint`` that loads the same again.
    sha256
        Hash of the file, or of the recipe for seeded weights.
    trained
        False for seeded noise, whether loaded by name or from a file: its flow is meaningless.
    state
        Complete state dict of ``GMA``; floats in float32.
    card
        Contents of the ``.json`` file of the weights; empty if there is none.
    attention
        What the file says that its weights are for, as ``gma.safetensors`` of a run does (see
        ``GMAConfig``); None where it says nothing.
    """

    name: str
    source: str
    sha256: str
    trained: bool
    state: dict[str, Tensor] = field(repr=False)
    card: Record = field(repr=False, default_factory=dict)
    attention: str | None = None

    @property
    def note(self) -> str:
        """Sentence about the weights, for captions."""
        if not self.trained:
            return (
                "The weights are seeded noise, so the flow shown here is noise too: only the "
                "machinery is real."
            )
        return str(self.card.get("note", f"Weights: {self.name}."))

    def to_record(self) -> Record:
        """Return name, source, SHA-256, ``trained`` and ``note``, for a JSON file."""
        return {
            "name": self.name,
            "source": self.source,
            "sha256": self.sha256,
            "trained": self.trained,
            "note": self.note,
        }

    def load_into(self, model: GMA) -> None:
        """Give a network these weights; BadFile where their file names another attention."""
        used = model.config.attention
        if self.attention not in (None, used):
            raise BadFile(
                Path(self.source),
                f"weights for attention={self.attention}",
                f"attention={used}, which is to be computed",
                f"Set attention={self.attention} (in a run, --set; in Python, GMAConfig; "
                "`gma flow` and load() compute content alone), or give other weights",
            )
        model.load_state_dict(self.state)


def list_checkpoints() -> list[str]:
    """List names that ``load_checkpoint`` takes: ``seeded`` (noise), then the bundled weights."""
    return [SEEDED, *sorted(path.stem for path in WEIGHTS_FOLDER.glob("*.safetensors"))]


def load_checkpoint(checkpoint: str | Path) -> Checkpoint:
    """Load weights by name (see ``list_checkpoints``) or from a ``.pth`` or ``.safetensors`` file.

    The state dict may be inside ``state_dict``, ``model_state_dict`` or ``model``; prefixes of
    DataParallel, torch.compile and Lightning are removed.

    Parameters
    ----------
    checkpoint
        A name, or a file of at most 256 MiB. Unlike in ``gma_lib.load``, a relative path starts at
        the checkout (installed without one: at the working directory during import).

    Raises
    ------
    MissingFile
        Neither a name nor a file.
    BadFile
        Unreadable; entries missing or unexpected (the first of each is named), of another shape or
        not finite; two names of one tensor differ; or bundled weights do not match their card.
    """
    if str(checkpoint) == SEEDED:
        return Checkpoint(
            SEEDED, SEEDED, hash_value(["recipe", SEED]), False, make_seeded_weights()
        )
    named = find_bundled(checkpoint)
    path = named or locate_path(checkpoint)
    if not path.exists():
        expected = f"a weights file, or one of {', '.join(list_checkpoints()[1:])}"  # no noise
        raise MissingFile(path, "no such file", expected, "Check the name")
    with reading(path, "a weights file (.pth or .safetensors)", "Save or download it again"):
        content = read_whole(path, largest=MOST_BYTES)
        state = _complete_state(_unwrap(decode_tensors(content, path.suffix.lower())))
        attention = _find_attention(content)
    digest = hashlib.sha256(content).hexdigest()
    if path == named:
        require_bundled(path, digest)
    return Checkpoint(
        name=path.stem,
        source=str(checkpoint),
        sha256=digest,
        trained=not _is_seeded(state),
        state=state,
        card=read_card(path),
        attention=attention,
    )


def find_same_weights(recorded: Record) -> str:
    """Return the name or file of the weights in a record of ``Checkpoint.to_record``.

    Raises ValueError if they have changed since, and as ``load_checkpoint``.
    """
    source = str(recorded["source"])
    if load_checkpoint(source).sha256 != recorded["sha256"]:
        raise ValueError(f"{source} has changed since 02_export: run 02_export again")
    return source


def load_model(checkpoint: str | Path, config: GMAConfig | None = None) -> tuple[GMA, Checkpoint]:
    """Return the network with a checkpoint's weights, and the checkpoint.

    The network is on the CPU, in evaluation mode, and needs no gradients. Without ``config`` it
    runs 6 updates (``gma_lib.load``: 12). Raises errors as ``load_checkpoint``, and BadFile where
    the file names another attention than ``config``.
    """
    loaded = load_checkpoint(checkpoint)
    model = GMA(config).eval().requires_grad_(False)
    loaded.load_into(model)
    return model, loaded


def decode_tensors(content: bytes, suffix: str) -> object:
    """Decode the bytes of a safetensors or PyTorch file, without running pickled code.

    Damaged content raises ValueError, ``SafetensorError`` or ``zipfile.BadZipFile``, depending on
    the format: call it inside ``reading``, which turns all into BadFile. Objects that PyTorch does
    not load with ``weights_only`` raise ValueError.
    """
    if suffix == ".safetensors" or content[8:9] == b"{":  # whatever its name
        return safetensors.torch.load(content)
    file = io.BytesIO(content)
    if content.startswith(b"PK\3\4"):
        entries = (archive := zipfile.ZipFile(file)).infolist()
        if (unpacked := sum(entry.file_size for entry in entries)) > len(content):
            raise ValueError(f"{len(content):,} bytes that unpack to {unpacked:,}")
        for entry in entries:
            if entry.filename.lower().endswith(".pkl"):
                _check_names(archive.open(entry))
        if damaged := archive.testzip():  # PyTorch does not look at checksums
            raise ValueError(f"damaged: the checksum of {damaged} does not fit")
    else:
        for _ in range(PICKLES):
            _check_names(file)
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # whatever a pickle does; a TorchScript archive is a RuntimeError
        raise ValueError("damaged, or it holds other things than tensors") from error


def _find_attention(content: bytes) -> str | None:
    """The attention that the metadata of a readable safetensors file name, if any."""
    if content[8:9] != b"{":
        return None
    head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    named: str | None = head.get("__metadata__", {}).get("attention")
    return named


def _check_names(pickled: IO[bytes]) -> None:
    """Refuse a pickle with long names of classes, in whose refusal PyTorch would search for a time
    that grows with the square of their length.
    """
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name == "GLOBAL" and len(cast(str, argument)) > LONGEST_NAME:
            raise ValueError(f"names a class in {len(cast(str, argument)):,} characters")


def _unwrap(content: object) -> dict[str, Tensor]:
    """The state dict inside what others save, its names without the prefixes that all of them
    have.
    """
    for _ in range(MOST_WRAPPERS):
        found = content if isinstance(content, dict) else {}
        inside = [key for key in WRAPPERS if isinstance(found.get(key), dict)]
        averages = [key for key in found if key not in WRAPPERS and _holds_weights(found[key])]
        if len(several := inside + averages * bool(inside)) > 1:
            raise ValueError(f"holds several sets of weights ({', '.join(map(str, several))})")
        content = found[inside[0]] if inside else content
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise ValueError(f"holds a {type(content).__name__}, not tensors by their names")
    for _ in range(LONGEST_PREFIX):
        for prefix in PREFIXES:
            if all(name.startswith(prefix) for name in content):
                content = {name.removeprefix(prefix): value for name, value in content.items()}
    return content


def _holds_weights(value: object) -> bool:
    """Whether an entry is a set of weights: tensors by name, and more than a scheduler has."""
    return (
        isinstance(value, dict)
        and len(value) >= FEWEST_ENTRIES
        and all(isinstance(one, Tensor) for one in value.values())
    )


def _complete_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Check entries against the network, add what savers leave out, return float32.

    The norm of a shortcut has two names, ``norm3`` and ``downsample.1``; either may be absent, and
    so may the counters of batches, which are for training alone.
    """
    twins = {name: twin for name in state if (twin := _find_twin(name))}
    wanted = _find_entries()
    counters = {name: value for name, value in wanted.items() if name.endswith(COUNTER)}
    state = counters | {twin: state[name] for name, twin in twins.items()} | state
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    if missing or unexpected:
        parts = [
            f"{len(names)} {kind} (first: {names[0]})"
            for kind, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise ValueError(f"not the weights of GMA: of {len(wanted)} entries {' and '.join(parts)}")
    complete = {name: _check_entry(name, state[name], wanted[name]) for name in wanted}
    for name, twin in twins.items():
        if not torch.equal(complete[name], complete[twin]):
            raise ValueError(f"{name} and {twin} are one tensor of the network, and differ")
    return complete


@cache
def _find_entries() -> dict[str, Tensor]:
    """The network's own entries: names, shapes, and what is constant."""
    return GMA().state_dict()


def _check_entry(name: str, tensor: Tensor, wanted: Tensor) -> Tensor:
    """The entry as the network holds it: real, finite, of its shape."""
    if tensor.shape != wanted.shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, GMA's is {tuple(wanted.shape)}")
    kinds = FLOATS if wanted.is_floating_point() else (torch.int64, torch.int32)
    if tensor.is_meta or tensor.dtype not in kinds or tensor.layout != torch.strided:
        found = f"{tensor.layout} {tensor.dtype}{' without values' * tensor.is_meta}"
        raise ValueError(f"{name} is {found}; GMA's is {wanted.dtype}")
    converted = tensor.detach().to(wanted.dtype)
    if not torch.isfinite(converted).all():
        raise ValueError(f"{name} holds values that are not finite in float32")
    if name.endswith("running_var") and (converted < 0).any():
        raise ValueError(f"{name} holds negative variances")
    is_constant = not (wanted.is_floating_point() or name.endswith(COUNTER))
    if is_constant and not torch.equal(converted, wanted):
        raise ValueError(f"{name} is not the network's, of which there is one")
    return converted


def _find_twin(name: str) -> str | None:
    """The other name of a shortcut's norm."""
    if ".norm3." in name:
        return name.replace(".norm3.", ".downsample.1.")
    if ".downsample.1." in name:
        return name.replace(".downsample.1.", ".norm3.")
    return None


def save_checkpoint(
    path: Path, state: dict[str, Tensor], *, metadata: dict[str, str] | None = None
) -> Path:
    """Write a state dict as a safetensors file and return its path; ``metadata`` is stored in it.

    A norm with two names is stored once. Equal input gives identical bytes.
    """
    kept = {name: value.contiguous() for name, value in state.items() if ".norm3." not in name}
    packed = safetensors.torch.save(kept)
    size = int.from_bytes(packed[:8], "little")
    # safetensors itself writes metadata in an order that changes from run to run
    about = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    head = json.dumps(about | json.loads(packed[8 : 8 + size]), separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # tensors are aligned
    with write_atomically(path) as partial:
        partial.write_bytes(len(head).to_bytes(8, "little") + head + packed[8 + size :])
    return Path(path)


def make_seeded_weights(seed: int = SEED) -> dict[str, Tensor]:
    """Return a state dict of random weights, the same bytes on every machine for one seed.

    They are scaled to keep activations in range; their flow is noise. The package's reference
    vectors for tests were made with the same recipe.
    """
    rng = np.random.default_rng(seed)
    template = GMA().state_dict()
    state = {}
    for name in sorted(template):
        tensor = template[name]
        if not tensor.is_floating_point():
            state[name] = tensor
            continue
        noise = rng.standard_normal(tensor.numel()).astype(np.float32).reshape(tuple(tensor.shape))
        state[name] = torch.from_numpy(np.asarray(_scale_noise(name, noise), dtype=np.float32))
    for name in state:
        if ".norm3." in name:
            state[name] = state[name.replace(".norm3.", ".downsample.1.")]
    return state


def _is_seeded(state: dict[str, Tensor]) -> bool:
    """Whether weights hold the recipe's gamma, in any precision: training ends at no such value."""
    gammas = [value for name, value in state.items() if name.endswith("gamma")]
    recipe = torch.tensor([SEEDED_GAMMA])
    return any(torch.equal(gamma, recipe.to(kind).float()) for gamma in gammas for kind in FLOATS)


def _scale_noise(name: str, noise: np.ndarray) -> np.ndarray:
    if noise.ndim == 2:
        return noise
    if noise.ndim == 4:
        scale = np.float32(np.sqrt(1.6 / np.prod(noise.shape[1:])))
        # small steps: the flow must not run away over the updates
        return noise * scale * np.float32(0.06 if name.endswith("flow_head.conv2.weight") else 1)
    if name.endswith("gamma"):
        return np.full_like(noise, SEEDED_GAMMA)
    is_variance = name.endswith("running_var")
    is_scale = name.endswith("weight") and ("norm" in name or "downsample.1" in name)
    is_small = not (is_variance or is_scale or name.endswith("running_mean"))
    scaled = np.float32(0.02 if is_small else 0.1) * (np.abs(noise) if is_variance else noise)
    return np.asarray(1 + scaled if is_variance or is_scale else scaled)
