"""Extras are named as pyproject.toml has them."""

import tomllib

from gma_lib.runs.extras import EXTRAS, name_extra
from gma_lib.runs.files import PROJECT


def test_a_missing_module_is_named_with_what_brings_it():
    for module, wanted in (("cv2", "'gma-lib'"), ("papermill.execute", "'gma-lib[notebooks]'")):
        error = ModuleNotFoundError(f"No module named {module!r}", name=module)
        assert name_extra(error) == f"{module} is not installed: pip install {wanted}"


def test_every_extra_that_is_named_exists():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS.values()) <= set(project["optional-dependencies"])
