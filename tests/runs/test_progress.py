"""Progress shows as plain lines where nobody watches; messages go to the stdout of the moment."""

import io
import logging
import sys
import time
from contextlib import redirect_stdout

import pytest

from gma_lib.runs import progress


@pytest.fixture
def lines(monkeypatch, capsys):
    """A log that nobody watches; called, it gives the lines that were printed since."""
    monkeypatch.setenv("GMA_HEADLESS", "1")
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    progress.show_messages()
    return lambda: capsys.readouterr().out.splitlines()


def test_items_pass_through_with_a_line_each(lines):
    assert list(progress.track("abc", label="flow", unit="batch")) == ["a", "b", "c"]
    written = lines()
    assert [line.split(",")[0].split(" in ")[0] for line in written] == [
        "flow: 1/3 batches",
        "flow: 2/3 batches",
        "flow: 3/3 batches",
    ]
    assert [line.endswith("s left") for line in written] == [True, True, False]


def test_items_of_unknown_number_are_counted(lines):
    assert list(progress.track(iter("ab"), label="flow", unit="pair")) == ["a", "b"]
    assert [line.split(" pairs")[0] for line in lines()] == ["flow: 1", "flow: 2", "flow: 2"]


def test_what_was_there_before_counts_but_not_for_the_rate(lines, monkeypatch):
    seconds = iter((0.0, 10.0, 20.0, 20.0, 0.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    assert len(list(progress.track("ab", label="flow", unit="pair", total=3, initial=1))) == 2
    assert lines() == [
        "flow: 2/3 pairs, 0.10 pairs/s, 10 s left",
        "flow: 3/3 pairs in 20.0 s, 0.10 pairs/s",
    ]
    assert not list(progress.track("", label="flow", unit="pair", total=1, initial=1))
    assert not lines()


def test_a_long_loop_logs_about_sixty_lines(lines, monkeypatch):
    seconds = iter(range(10_000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    assert len(list(progress.track(range(2082), label="flow", unit="pair"))) == 2082
    assert 55 <= len(lines()) <= 65


def run_cell(code, monkeypatch, capsys):
    """What a front end would show of a cell that raises."""
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    monkeypatch.setenv("JPY_SESSION_NAME", "any")
    progress.show_messages()
    result = shell.run_cell(code)
    assert result.error_in_exec is not None  # "Run All" stops
    return capsys.readouterr().out


def test_what_the_library_refuses_is_a_sentence_in_jupyterlab(monkeypatch, capsys):
    monkeypatch.delenv("GMA_HEADLESS", raising=False)
    code = "from gma_lib.runs import read_json\nread_json('absent.json', made_by='01_data')"
    shown = run_cell(code, monkeypatch, capsys)
    assert "run 01_data" in shown.lower()
    assert len(shown.strip().splitlines()) == 1
    shown = run_cell("raise ValueError('mine')", monkeypatch, capsys)
    assert "Traceback" in shown


def test_silence(lines):
    assert list(progress.pass_silently("ab", label="flow")) == ["a", "b"]
    assert lines() == []


def test_elapsed_seconds_are_logged_now_and_then(monkeypatch, capsys):
    progress.show_messages()
    moments = [1.0, 6.0, 7.0, 12.5]
    assert list(progress.log_elapsed(iter(moments), label="atc")) == moments
    assert capsys.readouterr().out.splitlines() == ["atc: 6 s so far", "atc: 12 s so far"]


class Terminal(io.StringIO):
    """What somebody watches."""

    def isatty(self):
        return True


def open_terminal(monkeypatch):
    """Replace stderr; pytest does so again before each test, so a fixture could not."""
    monkeypatch.setattr(progress, "_is_interactive", lambda: True)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_COUNTS", 0.05)
    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr


def test_seconds_are_counted_in_a_terminal_of_60_columns(monkeypatch):
    screen = open_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "60")
    with progress.show_waiting("x" * 100):
        time.sleep(0.3)
    _, counted, *_ = screen.getvalue().split("\r\033[K")
    assert counted == "x" * 59


def test_where_nobody_watches_seconds_are_not_counted(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_COUNTS", 0.05)
    with progress.show_waiting("shot 1.png"):
        time.sleep(0.3)
    assert capsys.readouterr().err == ""


def test_a_message_takes_the_line_of_the_count(monkeypatch):
    progress.show_messages()
    screen = open_terminal(monkeypatch)
    progress.logger.info("a message")
    assert screen.getvalue() == ""
    progress._counting.set()
    progress.logger.info("a message")
    assert screen.getvalue() == "\r\033[K"


def test_no_bar_and_no_count_where_only_errors_are_wanted(monkeypatch):
    for level, shown in ((logging.ERROR, False), (logging.WARNING, True)):
        monkeypatch.setattr(logging.getLogger("gma_lib"), "level", level)
        progress.logger.manager._clear_cache()
        screen = open_terminal(monkeypatch)
        with progress.show_waiting("stage"):
            assert list(progress.track("ab", label="flow", unit="pair")) == ["a", "b"]
            time.sleep(0.3)
        printed = screen.getvalue()
        assert ("flow" in printed, "stage" in printed) == (shown, shown)


def test_messages_are_printed_once_to_the_stdout_of_the_moment(lines):
    progress.show_messages()
    elsewhere = io.StringIO()
    with redirect_stdout(elsewhere):
        progress.logger.info("%d pairs", 3)
    progress.logger.info("here")
    progress.logger.debug("never")
    assert elsewhere.getvalue() == "3 pairs\n"
    assert lines() == ["here"]


def test_where_stdout_is_for_results_warnings_alone_go_to_stderr(capsys):
    for on_stderr, wanted in ((True, ("", "damaged\n")), (False, ("3 pairs\ndamaged\n", ""))):
        progress.show_messages(on_stderr=on_stderr)
        progress.logger.info("3 pairs")
        progress.logger.warning("damaged")
        assert capsys.readouterr() == wanted


def test_a_closed_stdout_is_none(monkeypatch):
    """As Python starts behind a shell's ``>&-``."""
    progress.show_messages()
    monkeypatch.setattr("sys.stdout", None)
    progress.logger.info("a line")
