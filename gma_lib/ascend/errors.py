"""What the errors of ``atc`` and ``ais_bench`` mean, and what to do about them."""

import re

ATC_CODE = r"\b(E[A-Z]?\d{4,5}|507011)\b"
_NO_PARSER = (
    "this opset or operator has no parser in this CANN",
    'export with an opset from 11 to 17 (PARAMS="opset=13"), or use a newer CANN',
)
_NO_KERNEL = (
    "no kernel for an operator on this chip",
    "install the chip's ops (kernels) package; from CANN 8.5 on it comes separately",
)
_PYTHON = (
    "CANN's own Python failed",
    "install what its compiler imports: decorator, attrs, psutil, scipy, sympy, cffi, pyyaml, "
    "numpy below 2",
)
# Code -> (what it means, what to do). A prefix counts for all codes that begin with it.
ATC_ERRORS = {
    "E10001": (
        "a parameter has a value that atc does not take",
        "read the line that follows the code: it names the parameter",
    ),
    "E10003": (
        "a parameter is not valid",
        "read the line that follows the code: it names the parameter and the values it takes",
    ),
    "E10007": ("--framework is missing", "pass 5 for ONNX, as this package always does"),
    "E10016": (
        "--input_shape names an input that the model does not have",
        "compare its names with those of the graph (image1, image2)",
    ),
    "E10054": (
        "a required parameter is empty",
        "often a shell that cut the command at an unquoted ';': this package uses no shell",
    ),
    "E10410": ("the file given to --keep_dtype was not found", "check its path"),
    "E10501": (
        "an operator is not registered in this CANN",
        "a newer CANN, or another form of the operator",
    ),
    "E11010": ("the parameters could not be parsed", "read the line that follows the code"),
    "E13": (
        "a file or folder cannot be read or written",
        "check path, rights (0644, 0755) and free space",
    ),
    "E16001": _NO_PARSER,
    "E16002": _NO_PARSER,
    "E19010": _NO_PARSER,
    "EZ9010": _NO_PARSER,
    "EZ3002": _NO_KERNEL,
    "EZ3003": _NO_KERNEL,
    "E19999": _PYTHON,
    "E40000": _PYTHON,
    "EC0010": _PYTHON,
    "EZ9999": (
        "an internal error of the compiler",
        "look into ~/ascend/log, and try another opset or lookup form",
    ),
    "EL0004": ("memory ran out", "a smaller batch size"),
    "507011": ("the model failed while it ran", "look into ~/ascend/log"),
    "EE1001": ("the model was made for another chip", "convert it for this one: SOC="),
}

# CANN's own words, then those of the tool: when it allocates, and with its code for that
OUT_OF_MEMORY = re.compile(
    r"EL0004|out of memory|\b207001\b|ACL_ERROR_RT_MEMORY_ALLOCATION|"
    r"MxbsMalloc failed|\[2\]\[ACL: memory allocation fail|can't malloc buffer",
    re.IGNORECASE,
)
# All that the tool says of an execution for which the card had no memory left; what failed for
# another reason has that reason's code in the text or in CANN's log.
EXECUTION_FAILED = re.compile(r"execute model failed, modelId is \d+")
AIS_CODE = re.compile(r"\bE[A-Z]?\d{4,5}\b|\b[15]0\d{4}\b")
AIS_CAUSES = (
    (
        re.compile(r"model socVersion"),
        "the model was made for another chip: run 03_convert again on this machine, or with SOC=",
    ),
    (
        re.compile(r"acl open device \d+ failed|\b507033\b|\b107001\b"),
        "the card's number is wrong or the card is taken: npu-smi info -m lists them (DEVICE=)",
    ),
    (
        re.compile(r"\b507011\b"),
        "the model failed while it ran (507011): look into ~/ascend/log/debug/plog",
    ),
    (
        re.compile(r"pkg_resources"),
        "ais_bench needs pkg_resources, which setuptools has no more since 82: install "
        "'setuptools<82' for the interpreter that has it",
    ),
    (
        re.compile(r"No module named '?(?:ais_bench|aclruntime)\b"),
        "install ais_bench and aclruntime for this interpreter (docs/ascend.md)",
    ),
    (re.compile(r"not match"), "the files do not have the size that the model's input has"),
    (
        re.compile(r"load model from file failed"),
        "the model was not loaded; it is damaged, made for another chip, or newer than "
        "this CANN: look into ~/ascend/log/debug/plog",
    ),
    # owner as a word, not as part of a path that is printed
    (
        re.compile(
            r"permission should not|soft link|is link|is illegal|illegal char|not permitted|"
            r"(?:path|file|dir)\b.{0,300} not exist|"
            r"(?<![\w/.-])owner(?![\w/-])",
            re.I,
        ),
        "the tool refuses the path: it wants real files of this user, mode 0644 in folders of "
        "0755, and names of letters, digits, "
        "'_', '.', '-' and '/'",
    ),
)


def explain_atc_error(text: str) -> str:
    """Say what a failed run of atc means, and a remedy."""
    if "libascend_hal.so" in text:
        return (
            "the driver's libascend_hal.so is missing, as in a container without a driver: "
            "add $ASCEND_TOOLKIT_HOME/<processor>-linux/devlib to LD_LIBRARY_PATH"
        )
    if "Failed to import Python module" in text:
        meaning, remedy = ATC_ERRORS["EC0010"]
        return f"{meaning}: {remedy}"
    for code in re.findall(ATC_CODE, text):
        for known in (code, code[:3]):
            if known in ATC_ERRORS:
                meaning, remedy = ATC_ERRORS[known]
                line = next(line.strip() for line in text.splitlines() if code in line)
                return f"{meaning} ({line[:300]}); {remedy}"
    lines = [line.strip()[:300] for line in text.splitlines() if line.strip()]
    coded = [line for line in lines if re.search(ATC_CODE, line)]
    if coded:
        return f"an error that is not known here ({coded[0]}); look into ~/ascend/log"
    return (
        f"no code that is known here; its last line: {lines[-1]}" if lines else "it printed nothing"
    )


def explain_ais_error(text: str, *, last: str) -> str:
    """Say what a failed run of ais_bench means; ``last`` is its last line, for unknown causes."""
    for pattern, meaning in AIS_CAUSES:
        if pattern.search(text):
            return f"{meaning} ({find_line(text, pattern)})"
    return find_line(text, AIS_CODE) or last


def find_line(text: str, pattern: re.Pattern[str]) -> str:
    """Return the first line that a pattern matches, cut at 300 characters."""
    return next((line.strip()[:300] for line in text.splitlines() if pattern.search(line)), "")
