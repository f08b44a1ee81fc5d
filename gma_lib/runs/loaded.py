"""Sources of this package's modules as Python loaded them: an open process keeps to these, whatever
its files hold by then.
"""

import sys
from contextlib import suppress
from pathlib import Path


class LoadedSources:
    """The first of Python's finders: it finds nothing, and keeps each source that is looked for.

    It also sees a module that is reloaded. A source that is replaced right after it was kept, and
    before it is loaded, counts as changed.
    """

    def __init__(self) -> None:
        self.sources: dict[Path, tuple[str, bytes]] = {}  # file -> module, content
        self._root = Path(__file__).resolve().parents[2]

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        """Keep a module's source; None, so that the next finder loads it."""
        if fullname.split(".")[0] == "gma_lib":
            place = self._root.joinpath(*fullname.split("."))
            for file in (place / "__init__.py", place.with_suffix(".py")):
                with suppress(OSError):
                    self.sources[file] = fullname, file.read_bytes()


LOADED = LoadedSources()
for _name in [*sys.modules]:  # this module, and those that are being loaded
    LOADED.find_spec(_name)
sys.meta_path.insert(0, LOADED)
