"""What computes flow: libraries, this package's code, and the processor."""

from gma_lib.runs.code import hash_code
from gma_lib.runs.files import PACKAGE, hash_value
from gma_lib.runs.machine import find_versions, identify_processor
from gma_lib.runs.records import Record

# what decides flow: packages of this one, and libraries
DECIDING = ("backends", "data", "flow", "infer", "network")
LIBRARIES = ("numpy", "torch", "onnxruntime", "openvino", "opencv-python-headless")
MAKING = ("convert", "export")  # what decides the model
MAKERS = ("onnx", "nncf")


def describe_means(*, with_model: bool) -> Record:
    """What flow depends on besides frames, model and settings; ``with_model``: also what the model
    depends on, where its digest is not known.
    """
    versions = find_versions()
    code = {
        f"{path.relative_to(PACKAGE)}": hash_code(path)
        for package in (*DECIDING, *MAKING * with_model)
        for path in sorted((PACKAGE / package).glob("*.py"))
    }
    return {
        "libraries": {name: versions.get(name) for name in (*LIBRARIES, *MAKERS * with_model)},
        "code_sha256": hash_value(code),
        "processor": identify_processor(),
    }
