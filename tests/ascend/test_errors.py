"""Every code that atc prints has a meaning."""

import time

import pytest

from gma_lib.ascend import errors

CODES = [
    "E10001",
    "E10003",
    "E10007",
    "E10016",
    "E10054",
    "E10410",
    "E10501",
    "E11010",
    "E13000",
    "E13025",
    "E16001",
    "E16002",
    "E19010",
    "EZ9010",
    "EZ3002",
    "EZ3003",
    "E19999",
    "E40000",
    "EC0010",
    "EZ9999",
    "EL0004",
    "EE1001",
    "507011",
]


@pytest.mark.parametrize(
    "form",
    [
        "{}: Value is wrong",
        "[PID: 1234] 2026-01-01-00:00:00.000.000 Invalid_Argument({}): Value is wrong",
    ],
)
@pytest.mark.parametrize("code", CODES)
def test_every_code_is_a_meaning_and_a_remedy(code, form):
    """Codes are recognised in both print formats."""
    text = (
        "ATC run failed, Please check the detail log, Try 'atc --help' for more "
        f"information\n{form.format(code)}\n  TraceBack: x.cc"
    )
    meaning, remedy = errors.ATC_ERRORS[code if code in errors.ATC_ERRORS else code[:3]]
    assert errors.explain_atc_error(text) == f"{meaning} ({form.format(code)}); {remedy}"


@pytest.mark.parametrize("code", ["E10019", "E16004", "E16005"])
def test_a_code_without_a_meaning_is_quoted(code):
    """The vendor names these and does not say what they mean; so their line is shown, not the
    last one.
    """
    assert f"({code}: Value is wrong)" in errors.explain_atc_error(
        f"ATC run failed\n{code}: Value is wrong\n  TraceBack: x.cc"
    )


@pytest.mark.parametrize("word", ["path ", "file not", "dir/", "E1", "EA12345 "])
def test_a_long_line_is_searched_in_linear_time(word):
    started = time.process_time()
    errors.explain_ais_error(word * (10**6 // len(word)), last="")
    errors.explain_atc_error(word * (10**6 // len(word)))
    assert time.process_time() - started < 2
