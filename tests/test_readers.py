"""A short form of ``make torture PART=readers``: a few hundred mutated files for every reader."""

import pytest
import readers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

READERS = readers.make_readers(readers.PROJECT / "outputs")
WITH_FOLDER = ("stamp",)
SLOW = {"safetensors": 20, "pth": 20, "training": 40, "yaml": 40}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Decoders write what they think of damaged files to the terminal; and a network of few entries
    is enough.
    """
    monkeypatch.setattr(readers.checkpoints, "_find_entries", readers.find_small_entries)
    level = readers.cv2.utils.logging.getLogLevel()
    readers.cv2.utils.logging.setLogLevel(0)
    yield
    readers.cv2.utils.logging.setLogLevel(level)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_mutated_files_give_a_result_or_the_one_error(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = readers.read_many(name, 0, SLOW.get(name, 200))
    assert known["past_header"] >= known["inputs"] * 0.4


@pytest.mark.filterwarnings("ignore")
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
    derandomize=True,
)
@given(content=st.binary(max_size=200), name=st.sampled_from(["flo", "npy", "png", "summary"]))
def test_any_bytes_give_a_result_or_the_one_error(content, name, tmp_path):
    reader = READERS[name]
    readers.attempt(reader, tmp_path, reader.seeds[0][:12] + content)


@pytest.mark.parametrize("place", readers.damage.PLACES)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_refused(name, place, tmp_path):
    reader = READERS[name] if name not in WITH_FOLDER else readers.make_readers(tmp_path)[name]
    (tmp_path / reader.name).parent.mkdir(parents=True, exist_ok=True)
    assert readers.attempt(reader, tmp_path, place)[0] != "result" or place == "empty"


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")
def test_every_refusal_is_reached(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert readers.cover(list(READERS), 60) == []


def test_a_reader_that_raises_something_else_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong = readers.Reader([b"abc"], lambda path: {}[path.name], "a.txt")
    monkeypatch.setattr(readers, "make_readers", lambda folder: {"wrong": wrong})
    number = len(readers.damage.PLACES)  # the first that is a file
    with pytest.raises(AssertionError, match=f"wrong {number}: KeyError"):
        readers.read_many("wrong", number, 1)
    assert next(tmp_path.iterdir()).name == f"failed-wrong-{number}"
