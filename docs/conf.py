"""The documentation site: ``make docs`` writes it to docs/_build/html."""

import html
import re
import shutil
from pathlib import Path

import latex2mathml.converter
import nbformat
from docutils.nodes import SkipNode, entry, literal
from nbclient import NotebookClient

import gma_lib
from gma_lib.pipeline.stages import STAGES, read_cells

HERE = Path(__file__).resolve().parent
# Where `make reproduce` leaves executed notebooks; the quickstart, no stage, is executed here.
EXECUTED = HERE.parent / "outputs" / "demo" / "openvino-float32"
TUTORIALS = HERE / "tutorials"
DECLARATION = r"^(\w+) = (.+?)  # type: (\S+)(?: - (.*))?$"
PARAMETERS = re.compile(r'<dl>\n((?:<dd><em class="sig-param">.*?</dd>\n)+)</dl>', re.DOTALL)
CODE_WORD = re.compile(r'(?<=<span class="pre">)[^<]{12,}(?=</span>)')
NOT_EXECUTED = """```{note}
This notebook has not been run here, so its results are missing. To see them, run
`make reproduce`, then `make docs`.
```"""


def copy_pages() -> None:
    """Copy notebooks and the weights' card into the source folder, the only place Sphinx reads."""
    shutil.rmtree(TUTORIALS, ignore_errors=True)
    TUTORIALS.mkdir()
    for notebook in sorted((HERE.parent / "notebooks").glob("*.ipynb")):
        places = [EXECUTED.parent / "data", EXECUTED / "bs1"]
        found = [place / notebook.name for place in places if (place / notebook.name).is_file()]
        copy_notebook(notebook, *found)
    shutil.rmtree(HERE / "viewers", ignore_errors=True)
    (HERE / "viewers" / "tutorials").mkdir(parents=True)
    shown = ("viewer", "viewer.html", "updates.html")  # within the notebooks' pages
    for page in (EXECUTED / "bs1" / name for name in shown if (EXECUTED / "bs1" / name).exists()):
        copy = shutil.copytree if page.is_dir() else shutil.copy
        copied = Path(copy(page, HERE / "viewers" / "tutorials" / page.name))
        if copied.is_file():  # whose index is the site's here
            copied.write_text(copied.read_text().replace("../../index.html", "../index.html"))
    card = shutil.ignore_patterns("*.safetensors", "*.json")
    shutil.copytree(HERE.parent / "weights", HERE / "weights", ignore=card, dirs_exist_ok=True)


def copy_notebook(notebook: Path, executed: Path | None = None) -> None:
    """Copy a notebook with its results, or with a note that it has none; run the quickstart."""
    content = nbformat.read(executed or notebook, as_version=4)
    if notebook.stem not in STAGES:  # a minute, the first time
        NotebookClient(content, timeout=600).execute()
    elif executed is None:
        content.cells.insert(1, nbformat.v4.new_markdown_cell(NOT_EXECUTED))
    for cell in content.cells:
        about = [
            one for output in cell.get("outputs", ()) for one in output.get("metadata", {}).values()
        ]
        if texts := [one["alt"] for one in about if "alt" in one]:
            cell.metadata["mystnb"] = {"image": {"alt": " ".join(texts)}}
    nbformat.write(content, TUTORIALS / notebook.name)


def write_parameters() -> None:
    """Write the page of parameters from the cells that declare them."""
    head = ["| parameter | default | type | meaning |", "|---|---|---|---|"]
    lines = [
        "# Parameters of the notebooks",
        "",
        "Each notebook declares its parameters in one cell, the second one with code. Set them in "
        'JupyterLab, in a file of `params/`, or with `PARAMS="name=value"`. The defaults below are '
        "those of JupyterLab; `make` takes the values of `params/common.yaml` and of the profile's "
        "file.",
    ]
    for stage in STAGES:
        cells = ["".join(cell["source"]) for cell in read_cells(stage) if is_tagged(cell)]
        lines += ["", f"## {stage}", "", *head]
        for name, default, kind, meaning in re.findall(DECLARATION, "\n".join(cells), re.M):
            columns = (f"`{name}`", f"`{default}`", f"`{kind}`", html.escape(meaning))
            lines.append(f"| {' | '.join(column.replace('|', ' or ') for column in columns)} |")
    (HERE / "reference" / "parameters.md").write_text("\n".join(lines) + "\n")


def is_tagged(cell: dict) -> bool:
    """Return whether a cell declares parameters."""
    return "parameters" in cell["metadata"].get("tags", [])


def allow_breaks(found: re.Match) -> str:
    """Allow a line to end within a long word of code: after a slash or the like, between the keys
    of ``a.b.c``, and where what is left is still long, after any dot, underscore or 16 digits.
    """
    breaks = [
        r"(?<=[\w\]}>\"])[/=,;:]+(?=[^/=,;:])",
        r"(?<=[\w\]>])\.(?=[^/\n]+\.)|(?<=\w>)\.(?=\w)",
    ]
    word = html.unescape(found[0])
    for one in breaks:
        word = re.sub(one, "\\g<0>\n", word)
    pieces = [
        re.sub(r"[._]+(?=\w)|[0-9a-f]{16}(?=\w)", "\\g<0>\n", piece) if len(piece) > 24 else piece
        for piece in word.split("\n")
    ]
    return html.escape("\n".join(pieces)).replace("\n", "<wbr>")


def list_parameters(found: re.Match) -> str:
    """Make a list of a signature's lines, of which Sphinx makes meanings without words."""
    lines = found[1].replace("<dd>", "<li>").replace("</dd>", "</li>")
    return f'<ul class="parameters">\n{lines}</ul>'


copy_pages()
write_parameters()
project = "GMA optical flow"
author = "the authors of the GMA reproducibility package"
version = release = gma_lib.__version__
extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_click",
]
html_extra_path = ["viewers"]
html_static_path = ["static", "../gma_lib/report/templates/scrolling.js"]
html_css_files = ["site.css"]
html_js_files = ["scrolling.js"]
templates_path = ["templates"]
exclude_patterns = ["_build", "templates", "viewers", "**.ipynb_checkpoints"]
html_theme = "furo"
html_math_renderer = "mathml"
html_title = project
html_show_sourcelink = html_show_copyright = False
smartquotes = False  # two dashes begin an option
nb_execution_mode = "off"
nb_output_stderr = "remove"  # progress
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath", "amsmath"]
numpydoc_show_class_members = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 68  # longer ones have a line for each parameter
nb_ipywidgets_js = {}  # a script from another host; the site works without a network


def setup(app):
    """Let links to notebooks lead to their copies, write formulas as MathML, let tables and words
    of code fit on phones, and mend what screen readers stumble over: captions of contents, which
    Sphinx calls headings, get a level, and a signature's lines become a list.

    Sphinx's own formulas need a script from another host; browsers draw MathML themselves.
    """

    def redirect(app, page, source):
        source[0] = source[0].replace("](../notebooks/", "](tutorials/")
        source[0] = source[0].replace("](../weights/", "](weights/")

    def write_inline(translator, node):
        translator.body.append(latex2mathml.converter.convert(node.astext()))
        raise SkipNode

    def write_block(translator, node):
        formula = latex2mathml.converter.convert(node.astext(), display="block")
        translator.body.append(f'<div class="math">{formula}</div>')
        raise SkipNode

    def mark_prose(app, document, page):
        for cell in document.findall(entry):
            code = sum(len(word.astext()) for word in cell.findall(literal))
            cell["classes"] += ["prose"] * (len(cell.astext()) > 40) + ["code"] * (code > 60)

    def finish(app, page, template, context, document):
        for part in {"body", "furo_navigation_tree"} & context.keys():
            leveled = 'role="heading" aria-level="2"'
            context[part] = context[part].replace('role="heading"', leveled)
        if "body" in context:
            body = PARAMETERS.sub(list_parameters, context["body"])
            context["body"] = CODE_WORD.sub(allow_breaks, body)

    app.connect("source-read", redirect)
    app.connect("doctree-resolved", mark_prose)
    app.connect("html-page-context", finish, priority=900)  # after the theme
    app.add_html_math_renderer("mathml", (write_inline, None), (write_block, None))
