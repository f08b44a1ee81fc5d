"""From weights to the file that PyTorch's backends load, which says the network's form, too."""

from pathlib import Path

from gma_lib import export, network
from gma_lib.convert.converted import Conversion, describe_parts


def convert_to_torch(folder: Path, checkpoint: str, at_once: int) -> Conversion:
    """Write ``gma.safetensors`` with the configuration of the exported network; ValueError if that
    has other weights, or does not say its form.
    """
    loaded = network.load_checkpoint(checkpoint)
    exported = export.read_description(folder / "gma.onnx")
    if "steps" not in exported:
        raise ValueError(f"{folder / 'gma.onnx'} is of another version: run 02_export again")
    if loaded.sha256 != exported["weights_sha256"]:
        raise ValueError(f"{checkpoint}: not the weights that gma.onnx was exported with")
    about = {
        "num_updates": exported["num_updates"],
        "attention": exported["attention"],
        "lookup": exported["lookup"],
        "steps": exported["steps"],
        "at_once": str(at_once),
        "source_sha256": loaded.sha256,
    }
    return Conversion(
        (network.save_checkpoint(folder / "gma.safetensors", loaded.state, metadata=about),),
        f"gma_lib.network.checkpoints.save_checkpoint('gma.safetensors', {loaded.name!r})",
        f"PyTorch runs the network in the exported form ({exported['lookup']} lookup); the file "
        f"holds weights and configuration. {describe_parts(at_once)}",
    )
