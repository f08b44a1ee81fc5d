"""The Ascend tool chain: which card, ``atc`` from ONNX to ``.om``, ``ais_bench`` over folders of
files.

``chip`` finds the card, ``toolkit`` CANN and its Python, ``operators`` says what a CANN version can
read, ``atc`` converts, ``ais_bench`` runs. Everything is asked of the vendor's command line tools;
nothing of theirs is imported here, so all of it works from an interpreter they do not support.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
