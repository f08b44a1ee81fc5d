"""What computes flow: libraries, this package's code, the processor, and a GPU."""

import gma_lib
from gma_lib.backends import find_backend
from gma_lib.runs.code import hash_code
from gma_lib.runs.files import PACKAGE, RESOURCES, hash_file, hash_value
from gma_lib.runs.machine import count_cores, find_versions, identify_processor
from gma_lib.runs.records import Record

# what decides flow: packages of this one, and libraries
DECIDING = ("ascend", "backends", "data", "flow", "infer", "network", "runs")
LIBRARIES = ("numpy", "torch", "onnxruntime", "openvino", "opencv-python-headless")
MAKING = ("convert", "export")  # what decides the model
MAKERS = ("onnx", "nncf")
READERS = ("av", "pillow", "scipy")  # decode clips and photographs, carry flow forward
SCENES = RESOURCES / "params" / "train.yaml"  # describes those that int8 is calibrated on


def describe_means() -> Record:
    """What flow depends on besides frames, model, device, threads and settings."""
    return _describe(DECIDING, LIBRARIES)


def describe_all_means(backend: str, precision: str, threads: int | None = None) -> Record:
    """What flow depends on besides frames, weights and settings: also what the model is made by,
    the GPU, the threads (None: all cores), and this package's version.
    """
    is_calibrated = precision == "int8"
    packages = (*DECIDING, *MAKING, *["training"] * is_calibrated)
    scenes = {"scenes_sha256": hash_file(SCENES)} if is_calibrated else {}
    gpu = {"gpu": name} if (name := find_gpu(backend)) else {}
    gpu |= describe_threads(backend, precision, threads)
    version = {"gma_lib": gma_lib.__version__}
    return version | _describe(packages, (*LIBRARIES, *MAKERS, *READERS)) | scenes | gpu


def describe_threads(backend: str, precision: str, threads: int | None) -> Record:
    """Number of threads (None: all cores) where flow depends on it by more than rounding: of a
    processor that computes in less than float32.
    """
    is_rounding = precision == "float32" or find_backend(backend).devices() is not None
    return {} if is_rounding else {"threads": threads or count_cores()}


def find_gpu(backend: str) -> str | None:
    """Name of the GPU that a backend computes on in this process; None where it needs none."""
    if find_backend(backend).computes_on != "cuda":
        return None
    import torch

    return torch.cuda.get_device_name()


def _describe(packages: tuple[str, ...], libraries: tuple[str, ...]) -> Record:
    code = {
        f"{path.relative_to(PACKAGE)}": hash_code(path)
        for package in packages
        for path in sorted((PACKAGE / package).glob("*.py"))
    }
    return {
        "libraries": find_versions(libraries),
        "code_sha256": hash_value(code),
        "processor": identify_processor(),
    }
