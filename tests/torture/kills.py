"""``make torture PART=kills``; see ``stages.py``."""

import sys

from stages import try_part

if __name__ == "__main__":
    try_part(["kills", *sys.argv[1:]])
