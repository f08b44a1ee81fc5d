"""Stage 01: frames and ground truth, from Sintel, clips or the rendered demo set.

Names are loaded on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
