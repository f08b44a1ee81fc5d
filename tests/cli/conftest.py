"""What tests of several commands share."""

import numpy as np
import pytest

from gma_lib.flow.images import write_frame


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory):
    """One for all commands: each model is made once."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module", autouse=True)
def cache(cache_folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GMA_CACHE", cache_folder)
        yield


@pytest.fixture
def photos(tmp_path, small_frames):
    """A folder of four frames that move by five pixels each."""
    folder = tmp_path / "photos"
    for number in range(1, 5):
        write_frame(folder / f"shot {number}.png", np.roll(small_frames[0][0], 5 * number, axis=2))
    return folder
