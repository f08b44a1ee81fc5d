"""Where the files of a run lie, how files and records are written, and what this machine is."""
