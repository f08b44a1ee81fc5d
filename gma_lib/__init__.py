"""GMA optical flow, from frames to a report that anyone can re-run.

Conventions, everywhere in this package
---------------------------------------
Frames
    float32, shape ``(3, H, W)`` or ``(N, 3, H, W)``, RGB, 0..255 as decoded; the network scales
    inside. Those that ``read_photo``, ``read_clip`` and ``read_video`` return are uint8 where the
    file's are.
Flow
    float32, shape ``(2, H, W)`` or ``(N, 2, H, W)``, in pixels, x before y: the point (x, y) of the
    first frame is found at (x + u, y + v) in the second.
Masks
    bool, shape ``(H, W)``.
1px
    The share of pixels whose endpoint error is **below** one pixel; higher is better.

One package per stage, in the order in which data flows; each imports only from those before it:
``runs``, ``flow``, ``network``, ``data``, ``ascend``, ``backends``, ``training``, ``export``,
``convert``, ``infer``, ``evaluate``, ``perf``, ``pipeline``, ``verify``, ``report``; above them
``doctor`` and ``cli``.

For flow of your own frames, three lines (see ``gma_lib.infer.estimator``)::

    from gma_lib import load

    flow = load("gma-procedural")(frame1, frame2)
"""

import os
import sys
from types import ModuleType

import lazy_loader

from gma_lib.runs.loaded import LOADED as LOADED  # before any module that computes

__version__ = "0.1.0"
# ONNX Runtime, OpenVINO and NNCF otherwise report their use to their makers, and write an
# identifier to the home folder. The last two do not where their module for it has nothing in it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", ModuleType("openvino_telemetry"))
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
