"""Parameters arrive as typed, and what is wrong is refused before anything starts."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from command_line import gma

from gma_lib.ascend import keep
from gma_lib.backends import BACKENDS
from gma_lib.network.model import LOOKUPS
from gma_lib.pipeline import parameters
from gma_lib.pipeline.parameters import (
    Parameters,
    WrongParameters,
    check_parameters,
    parse_override,
    parse_overrides,
    resolve_parameters,
)
from gma_lib.runs.files import PROJECT, locate_path


def resolve(*settings, profile="tiny"):
    return resolve_parameters(profile, {"batch_size": 1} | dict(map(parse_override, settings)))


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("batch_size=0", "0"),
        ("batch_size=3.5", "3.5"),
        ("batch_size=four", "'four'"),
        ("batch_size=true", "True"),
        ("batch_size=1000000", "1000000"),
        ("bakend=torch", "did you mean 'backend'?"),
        ("backend=tensorrt", "openvino, onnxruntime, torch, cuda"),
        ("precision=half", "float32, bfloat16, float16, int8"),
        ("num_updates=six", "'six'"),
        ("num_updates=0", "0"),
        ("num_updates=012", "'012'"),
        ("num_updates=6.0", "6.0"),
        ("attention=contents", "content, position"),
        ("lookup=gathr", "matmul, rows, gather, grid_sample"),
        ("opset=12", "13 to 19 for lookup 'rows'"),
        ("passes=clean", "'clean'"),
        ("passes=[clean", "'[clean'"),
        ("passes=[]", "[]"),
        ("passes=[clean, clean]", "each once"),
        ("passes=[sharp]", "clean, final, not 'sharp'"),
        ("scenes=[1]", "1"),
        ("scenes=[rush, alley_1]", "'alley_1'"),
        ("split=validation", "training, test"),
        ("cluster=dask", "serial, processes:N"),
        ("cluster=processes:0", "serial, processes:N"),
        ("palette=red", "middlebury, twilight"),
        ("limit_s=nan", "'nan'"),
        ("limit_s=NaN", "nan"),
        ("limit_s=-1", "-1"),
        ("cell_limit_s=0", "0"),
        ("budget_s=Infinity", "inf"),
        ("budget_s=1e300", "1e+300"),
        ("device=256", "256"),
        ("soc=x86", "'x86'"),
        ("keep=everything", "'guide' or 'coordinates'"),
        ("save_work=1", "1"),
        ("run=../elsewhere", "'../elsewhere'"),
        ("profile=demo", "'demo'"),
        ("outputs=", "None"),
        ("sintel_root=/no/such/folder", "/no/such/folder"),
        ("sintel_root=a\nb", "newline"),
        ("sintel_root=a\udcffb", "UTF-8"),
        ("checkpoint=nothing.pth", "nothing.pth"),
        ("num_updates", "'num_updates'"),
    ],
)
def test_what_is_wrong_is_refused_in_a_sentence_that_names_it(setting, named):
    with pytest.raises(WrongParameters, match=re.escape(named)) as refused:
        resolve(setting)
    assert setting.partition("=")[0] in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_a_form_that_the_backend_does_not_run():
    """Its records would name it all the same."""
    with pytest.raises(
        WrongParameters, match=r"'grid_sample' or null for backend cuda, .*'matmul'"
    ):
        resolve("backend=cuda", "lookup=matmul")
    with pytest.raises(WrongParameters, match="16 to 19 for lookup 'grid_sample', not 13"):
        resolve("backend=cuda", "opset=13")
    for backend in BACKENDS:
        assert resolve(f"backend={backend}", "lookup=grid_sample")["opset"] is None


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_updates=12", 12),
        ("budget_s=1e3", 1000.0),
        ("limit_s=5", 5),
        ("passes=[clean]", ["clean"]),
        ("scenes=[rush]", ["rush"]),
        ("scenes=null", None),
        ("run=null", None),
        ("look_at=null", None),
        ("sintel_root=null", None),
        ("lookup=null", None),
        ("opset=null", None),
        ("opset=14", 14),
        ("lookup=gather", "gather"),
        ("soc=910_9391", "910_9391"),
        ("cluster=dask:tcp://10.0.0.1:8786", "dask:tcp://10.0.0.1:8786"),
        ("at_once=null", None),
        ("tensors=true", True),
        ("run=1e3", "1e3"),
        ("run=", None),
        ("sintel_root=", None),
    ],
)
def test_other_values_are_what_they_say(setting, value):
    assert resolve(setting)[setting.partition("=")[0]] == value


def test_scenes_are_those_of_the_data_set(tiny_sintel):
    """Before a kernel starts, in every pass that is asked for."""
    for folder in (tiny_sintel / "training").iterdir():
        (folder / "alley").rename(folder / "a b")
    data, scenes = f"sintel_root={tiny_sintel}", 'scenes=["a b", cave]'
    assert resolve(data, scenes)["scenes"] == ["a b", "cave"]
    with pytest.raises(WrongParameters, match=r"scenes.*'rush'"):
        resolve(data, "scenes=[rush]")
    shutil.rmtree(tiny_sintel / "training/final/cave")
    with pytest.raises(WrongParameters, match="final"):
        resolve(data, scenes)
    assert resolve(data, scenes, "passes=[clean]")


@pytest.mark.parametrize(
    "name", ["./null", "~", "1e3", "x #y", "true", "[a]", "a$HOME", "it's", 'a"b', "😀", "{a: b}"]
)
def test_a_path_is_a_path(tmp_path, monkeypatch, name):
    """Whatever YAML or a shell would read into it; relative ones start at the project."""
    (tmp_path / name).mkdir()
    assert resolve(f"sintel_root={tmp_path / name}")["sintel_root"] == f"{tmp_path / name}"
    monkeypatch.setattr("gma_lib.runs.files.PROJECT", tmp_path)
    assert locate_path(resolve(f"sintel_root={name}")["sintel_root"]) == tmp_path / name


def test_a_leading_tilde_and_slash_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    assert locate_path(resolve("sintel_root=~/data")["sintel_root"]) == tmp_path / "data"
    assert locate_path("~root") == PROJECT / "~root"


def test_a_data_set_s_profile_needs_the_data_set(tmp_path):
    with pytest.raises(WrongParameters, match="needs sintel_root"):
        resolve(profile="sintel")
    with pytest.raises(WrongParameters, match="needs sintel_root"):
        resolve("sintel_root=", profile="sintel")
    with pytest.raises(WrongParameters, match="needs sintel_root"):  # in JupyterLab
        check_parameters({"profile": "sintel", "sintel_root": None, "print": print})
    assert resolve(f"sintel_root={tmp_path}", profile="sintel")["full_batch_size"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("profile: other\n", "'other'"),
        ("num_updates: 3\n", "None"),
        ("profile: mine\nnum_updates: '3'\n", "num_updates"),
        ("profile: mine\nlimit_s: .inf\n", "limit_s"),
        ("profile: mine\npasses: null\n", "passes"),
        ("- profile\n", "list"),
        ("profile: [mine\n", "not readable YAML"),
        ("profile: mine\nscenes: [2001-99-99]\n", "not readable YAML"),
        ("profile: \udcff\n", "mine.yaml"),
        (f"profile: {'[' * 5000}\n", "not readable YAML"),
    ],
)
def test_a_profile_of_one_s_own_is_checked_too(tmp_path, monkeypatch, text, message):
    (tmp_path / "common.yaml").write_bytes((parameters.PARAMS / "common.yaml").read_bytes())
    (tmp_path / "mine.yaml").write_bytes(text.encode(errors="surrogateescape"))
    monkeypatch.setattr(parameters, "PARAMS", tmp_path)
    with pytest.raises(WrongParameters, match=message) as refused:
        resolve("checkpoint=seeded", profile="mine")
    assert len(str(refused.value).splitlines()) == 1


def test_the_names_are_those_that_the_library_knows():
    """Where importing them would take long, they are written down twice."""
    said = re.findall(r"'(\w+)'", str(Parameters.__annotations__["keep"]))
    assert set(said) == set(keep.CHOICES)
    assert set(parameters.OPSETS) == set(LOOKUPS)


@pytest.mark.parametrize(
    "wrong",
    [
        ["--profile", "sintle"],
        ["--profile", "sintel"],
        ["--backend", "openvno"],
        ["--batch-size", "1", "--batch-size", "many"],
        ["--set", "limit_s=nan"],
        ["--set", "batch_size=3"],
        ["--set", "num_updates=2", "--set", "num_updates=3"],
        ["--updates", "2", "--set", "num_updates=2"],
        ["--updates", "2", "--updates", "3"],
        ["--profile", "quick", "--profile", "tiny"],
        ["--until", "05_evaluatee"],
        ["--sintel", "null"],
        ["--sintel", ""],
        ["--checkpoint", ""],
        ["--run", ""],
    ],
)
def test_what_is_wrong_leaves_nothing(tmp_path, wrong):
    """No folder, no row, no page."""
    outputs = tmp_path / "outputs"
    given = wrong if "--profile" in wrong else ["--profile", "tiny", *wrong]
    gma("reproduce", f"--set=outputs={outputs}", *given, exit_code=2)
    assert not outputs.exists()


def test_a_name_given_twice_is_refused():
    assert parse_overrides(["run=a", "limit_s=5"]) == {"run": "a", "limit_s": 5}
    with pytest.raises(WrongParameters, match="run"):
        parse_overrides(["run=a", "limit_s=5", "run=b"])


def test_make_hands_on_what_was_typed(tmp_path):
    """Neither make nor the shell reads anything into a path."""
    shown = tmp_path / "show.sh"
    shown.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    shown.chmod(0o755)

    # `make test` is a make of its own, which hands its own variables on
    own = re.search(r"^GIVEN := (.+)$", (PROJECT / "Makefile").read_text(), re.MULTILINE)[1].split()
    outside = {
        name: text for name, text in os.environ.items() if "MAKE" not in name and name not in own
    }

    def make(target, **variables):
        given = [f"{name}={value}" for name, value in variables.items()]
        return subprocess.run(
            ["make", target, f"PYTHON={shown}", *given],
            capture_output=True,
            text=True,
            cwd=PROJECT,
            env=outside,
        )

    path = "/d/null x, y)( #y $HOME $(shell id) \"'`id` 😀 <b>"
    given = {"SINTEL": path, "CHECKPOINT": "~", "PARAMS": "a=$b c='d'", "BS": "2 3"}
    done = make("reproduce", **given, CLUSTER="processes:2")
    assert done.returncode == 0, done.stderr
    handed = done.stdout.splitlines()
    assert f"--sintel={path}" in handed
    assert {"--checkpoint=~", "--cluster=processes:2", "--set=a=$b", "--set=c='d'"} <= set(handed)
    assert [word for word in handed if "batch" in word] == ["--batch-size=2", "--batch-size=3"]
    assert "--until" not in handed
    assert make("04_infer").stdout.splitlines()[-2:] == ["--until", "04_infer"]
    assert "--sintel=/d/a\nb" in make("reproduce", SINTEL="/d/a\nb").stdout
    handed = make("ascend-dry-run", SOC="310P3").stdout.splitlines()
    assert {"--backend=ascend", "--precision=float16", "--set=soc=310P3"} <= set(handed)
    assert {"dry-run", "--soc=310P3"} <= set(handed)


@pytest.mark.parametrize("kind", ["a file", "a dangling link", "inside a file"])
def test_outputs_that_cannot_be_written_are_a_sentence(tmp_path, kind):
    outputs = tmp_path / "outputs"
    if kind == "a dangling link":
        outputs.symlink_to(tmp_path / "nowhere")
    else:
        outputs.write_text("mine")
    inside = outputs / "below" if kind == "inside a file" else outputs
    command = ["reproduce", "--profile", "tiny", f"--set=outputs={inside}"]
    answer = gma(*command, exit_code=1)
    assert str(inside) in answer
    assert len(answer.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs"]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_outputs_of_another_user_are_a_sentence(tmp_path):
    """Also where they are read-only."""
    tmp_path.chmod(0o755)
    code = (
        "import os, sys; from gma_lib.runs.files import require_writable\n"
        "from pathlib import Path; os.setuid(65534)\n"
        "try: require_writable(Path(sys.argv[1]))\n"
        "except OSError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")], capture_output=True, text=True
    )
    assert "cannot write to" in done.stdout
    assert not (tmp_path / "x").exists()
