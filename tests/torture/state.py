"""Where the tortures keep what they have done, so that an interrupted one goes on."""

from gma_lib.runs.files import PROJECT
from gma_lib.runs.machine import find_commit

HOME = PROJECT / "outputs" / "torture"


def require_commit() -> None:
    """Keep the commit of what is done; SystemExit where that is of another."""
    file, commit = HOME / "commit.txt", str(find_commit()).partition("+")[0]
    made = file.read_text() if file.is_file() else commit
    if made != commit:
        raise SystemExit(f"{HOME} is of commit {made}, not {commit}: delete it")
    HOME.mkdir(parents=True, exist_ok=True)
    file.write_text(commit)
