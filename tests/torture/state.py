"""Where the tortures keep what they have done, so that an interrupted one goes on."""

from pathlib import Path

from gma_lib.runs.clusters import describe_software
from gma_lib.runs.files import PROJECT, hash_file, hash_value

HOME = PROJECT / "outputs" / "torture"


def require_same_software() -> None:
    """Keep what decides results; SystemExit where what is done is of other code, libraries or
    another processor.
    """
    own = [
        *Path(__file__).parent.glob("*.py"),
        *(PROJECT / "notebooks").glob("*.ipynb"),
        *(PROJECT / "params").glob("*.yaml"),
    ]
    software = hash_value([describe_software(), [hash_file(path) for path in sorted(own)]])
    file = HOME / "software.txt"
    if (
        HOME.is_dir()
        and any(HOME.iterdir())
        and (not file.is_file() or file.read_text() != software)
    ):
        raise SystemExit(f"{HOME} is of other code, libraries or processor: delete it")
    HOME.mkdir(parents=True, exist_ok=True)
    file.write_text(software)
