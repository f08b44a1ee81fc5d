"""GMA itself: the model, its weights, its deploy form and the memory that it needs.

Names are loaded on first use: importing the package works without PyTorch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
