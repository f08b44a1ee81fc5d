"""Runtimes that compute flow: one file each, one literal table (``gma_lib.backends.kinds``).

A runtime is imported when its backend is made, so this package imports where none of them is
installed. To add one, write a file with a ``Backend`` subclass and its options, name both in
``__init__.pyi``, and add a line to the table.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
