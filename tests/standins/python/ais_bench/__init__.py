"""A stand-in for ais_bench; see ``__main__``."""

__version__ = "0.0.2"
