"""``make torture PART=faults``; see ``stages.py``."""

import sys

from stages import try_part

if __name__ == "__main__":
    try_part(["faults", *sys.argv[1:]])
