"""The weights that come with this package, and the cards that say what they are."""

from pathlib import Path

from gma_lib.runs.files import RESOURCES, BadFile, hash_file
from gma_lib.runs.records import Record, load_record

WEIGHTS_FOLDER = RESOURCES / "weights"
SEEDED_GAMMA = 0.7


def find_bundled(name: str | Path) -> Path | None:
    """The file of bundled weights; None where no weights have this name, as for a file's path."""
    file = WEIGHTS_FOLDER / f"{name}.safetensors"
    return file if file.parent == WEIGHTS_FOLDER and file.is_file() else None


def read_card(weights: Path) -> Record:
    """Return the content of the ``.json`` file next to weights; empty if there is none."""
    card = weights.with_suffix(".json")
    expected = "the card of the weights"
    return load_record(card, expected, "Fix or delete the file") if card.is_file() else {}


def require_bundled(weights: Path, sha256: str) -> None:
    """Raise ``BadFile`` unless bundled weights have the SHA-256 that their card says."""
    if read_card(weights).get("sha256") != sha256:
        raise BadFile(
            weights,
            f"SHA-256 {sha256[:12]}..., which is not what its card says",
            "the weights that came with this package",
            "Reinstall the package, or check the file out again",
        )


def identify_safetensors(weights: Path) -> tuple[str, bool] | None:
    """Hash of a safetensors file, and whether its weights are other than seeded ones, without
    PyTorch; None for another file, a damaged one or bfloat16.
    """
    from safetensors import safe_open

    if not weights.is_file():  # a pipe would never end
        return None
    try:
        with safe_open(weights, "numpy") as file:
            names = file.keys()
            gammas = [file.get_tensor(name) for name in names if name.endswith("gamma")]
    except Exception:  # whatever is wrong with it, reading it whole says so
        return None
    return hash_file(weights), all((one != one.dtype.type(SEEDED_GAMMA)).all() for one in gammas)
