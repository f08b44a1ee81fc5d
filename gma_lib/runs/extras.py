"""Extras of this package, and the modules that they install."""

# Module -> extra of pyproject.toml; what is not here comes without one.
EXTRAS = {"nncf": "int8", "skimage": "training", "distributed": "distributed"} | dict.fromkeys(
    (
        *("IPython", "ipykernel", "ipywidgets", "latex2mathml", "nbclient", "nbconvert"),
        *("nbformat", "onnxruntime", "pandas", "papermill", "rocrate"),
    ),
    "notebooks",
)


def name_extra(error: ModuleNotFoundError) -> str:
    """Say how to install a missing module, where the error names one."""
    if error.name is None or error.name.startswith("gma_lib"):
        return str(error)
    name = error.name.partition(".")[0]
    extra = f"[{EXTRAS[name]}]" if name in EXTRAS else ""
    return f"{error.name} is not installed: pip install 'gma-lib{extra}'"
