"""What computes flow: libraries, this package's code, the processor, and a GPU."""

import gma_lib
from gma_lib.backends import find_backend
from gma_lib.runs.code import hash_code
from gma_lib.runs.files import PACKAGE, RESOURCES, hash_file, hash_value
from gma_lib.runs.machine import find_versions, identify_processor
from gma_lib.runs.records import Record

# what decides flow: packages of this one, and libraries
DECIDING = ("backends", "data", "flow", "infer", "network")
LIBRARIES = ("numpy", "torch", "onnxruntime", "openvino", "opencv-python-headless")
MAKING = ("convert", "export")  # what decides the model
MAKERS = ("onnx", "nncf")
SCENES = RESOURCES / "params" / "train.yaml"  # describes those that int8 is calibrated on


def describe_means() -> Record:
    """What flow depends on besides frames, model, device and settings."""
    return _describe(DECIDING, LIBRARIES)


def describe_all_means(backend: str, precision: str) -> Record:
    """What flow depends on besides frames, weights and settings: also what the model is made by,
    the GPU, and this package's version.
    """
    is_calibrated = precision == "int8"
    packages = (*DECIDING, *MAKING, *["training"] * is_calibrated)
    scenes = {"scenes_sha256": hash_file(SCENES)} if is_calibrated else {}
    gpu = {"gpu": name} if (name := find_gpu(backend)) else {}
    version = {"gma_lib": gma_lib.__version__}
    return version | _describe(packages, (*LIBRARIES, *MAKERS)) | scenes | gpu


def find_gpu(backend: str) -> str | None:
    """Name of the GPU that a backend computes on in this process; None where it needs none."""
    if find_backend(backend).computes_on != "cuda":
        return None
    import torch

    return torch.cuda.get_device_name()


def _describe(packages: tuple[str, ...], libraries: tuple[str, ...]) -> Record:
    versions = find_versions()
    code = {
        f"{path.relative_to(PACKAGE)}": hash_code(path)
        for package in packages
        for path in sorted((PACKAGE / package).glob("*.py"))
    }
    return {
        "libraries": {name: versions.get(name) for name in libraries},
        "code_sha256": hash_value(code),
        "processor": identify_processor(),
    }
