import pytest

from gma_lib import export
from gma_lib.network.checkpoints import load_model
from gma_lib.network.model import GMAConfig

OPSETS = {"matmul": 13, "rows": 13, "gather": 12, "grid_sample": 16}


@pytest.fixture(scope="session", params=OPSETS)
def exported(request, tmp_path_factory):
    """Each lookup form as a file for two pairs: form, file, network."""
    model, checkpoint = load_model("seeded", GMAConfig(lookup=request.param, num_updates=2))
    path = tmp_path_factory.mktemp(request.param) / "gma.onnx"
    size = {"height": 128, "width": 160, "batch_size": 2}
    export.export_whole(model, path, **size, checkpoint=checkpoint, opset=OPSETS[request.param])
    return request.param, path, model
