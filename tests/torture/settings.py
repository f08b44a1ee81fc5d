"""``make torture PART=settings``; see ``stages.py``."""

import sys

from stages import try_part

if __name__ == "__main__":
    try_part(["settings", *sys.argv[1:]])
