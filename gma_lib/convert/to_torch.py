"""From a checkpoint to what the PyTorch backends load: weights and configuration in one file."""

from pathlib import Path

from gma_lib.convert.conversion import Conversion, describe_parts
from gma_lib.export.trace import read_description
from gma_lib.network.checkpoints import load_checkpoint, save_checkpoint


def convert_to_torch(folder: Path, checkpoint: str, at_once: int) -> Conversion:
    """Write ``gma.safetensors`` with the configuration of the exported network."""
    loaded = load_checkpoint(checkpoint)
    exported = read_description(folder / "gma.onnx")
    about = {
        "num_updates": exported["num_updates"],
        "attention": exported["attention"],
        "at_once": str(at_once),
        "source_sha256": loaded.sha256,
    }
    return Conversion(
        (save_checkpoint(folder / "gma.safetensors", loaded.state, metadata=about),),
        f"gma_lib.network.checkpoints.save_checkpoint('gma.safetensors', {loaded.name!r})",
        "PyTorch runs the network as written, in its deploy form; the file holds weights and "
        f"configuration. {describe_parts(at_once)}",
    )
