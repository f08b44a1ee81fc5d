"""Where the files of a run lie, how files and records are written, and what this machine is."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
