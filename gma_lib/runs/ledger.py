"""A ledger of files that were written: what a resumed run may take over."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gma_lib.runs.files import hash_file, read_whole, reading
from gma_lib.runs.records import Record

NAME = "ledger.jsonl"
ENTRY = ("pair", "key", "sha256")  # strings


@dataclass(frozen=True)
class Ledger:
    """One line of JSON for each file that was written; the last line of a pair counts.

    Attributes
    ----------
    path
        The ledger's own file; none is an empty ledger.
    """

    path: Path

    def note(self, pair: str, key: str, file: Path) -> None:
        """Record that a pair's file has been written, and from what: a key, such as a digest."""
        entry = {"pair": pair, "key": key, "sha256": hash_file(file)}
        with open(self.path, "a", encoding="utf-8") as ledger:
            # The line break comes first: a line that an interruption cut short spoils no other.
            ledger.write("\n" + json.dumps(entry))
            ledger.flush()
            os.fsync(ledger.fileno())

    def read_entries(self) -> Iterator[Record]:
        """Yield the entries; a damaged line loses its own entry only."""
        if not self.path.is_file():
            return
        with reading(self.path, "the ledger of a run", "Delete it: all is computed again") as path:
            lines = read_whole(path).split(b"\n")
        for line in lines:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):  # cut short, or not even UTF-8
                continue
            if isinstance(entry, dict) and {*map(type, map(entry.get, ENTRY))} == {str}:
                yield entry

    def read_hashes(self) -> dict[str, str]:
        """Map each pair to the SHA-256 that its file had when it was written."""
        return {entry["pair"]: entry["sha256"] for entry in self.read_entries()}

    def find_whole(self, keys: dict[str, str], files: dict[str, Path]) -> set[str]:
        """Find the pairs whose file is, byte for byte, what was written for their key."""
        last = {entry["pair"]: entry for entry in self.read_entries()}
        return {
            pair
            for pair, key in keys.items()
            if pair in last
            and last[pair]["key"] == key
            and files[pair].is_file()
            and hash_file(files[pair]) == last[pair]["sha256"]
        }
