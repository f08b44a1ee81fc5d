"""A stand-in for ``python -m ais_bench``: arguments, batches, names, summary, texts and exit codes
of the real tool, as far as the package's command lines go.

Computes with ONNX Runtime what an .om of the stand-in for atc holds. With ``--loop`` above 1 it
replays declared times.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import stat
import sys
import time

import numpy as np

GENERATION = os.environ.get("STANDIN_GENERATION", "T")
FAULT = os.environ.get("STANDIN_FAULT", "")
SOC = os.environ.get("STANDIN_SOC", "310P3")
MEMORY = int(os.environ.get("STANDIN_MEMORY_MB", "21534")) * 2**20
# Per call at batch size 1, 4, 8: what the published throughput of 0.766, 0.772 and 0.678 comes to
TIMES_MS = dict(
    zip(
        (1, 4, 8, 16),
        map(float, os.environ.get("STANDIN_TIMES_MS", "1305,5181,11799,0").split(",")),
        strict=True,
    )
)
MARK = b"SIMULATED OM\n"
PADDING = "padding_infer_fake_file"


def positive(text):
    if not text.isdigit() or int(text) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def not_negative(text):
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return int(text)


def devices(text):
    numbers = [int(part) for part in text.split(",")]
    if any(not 0 <= number <= 255 for number in numbers):
        raise argparse.ArgumentTypeError("device id must be in 0..255")
    return numbers if "," in text else numbers[0]


def get_args():
    parser = argparse.ArgumentParser(prog="ais_bench")
    parser.add_argument("--model", "-m", required=True)
    parser.add_argument("--input", "-i")
    parser.add_argument("--output", "-o", required=True)
    parser.add_argument("--output_dirname", required=True)
    parser.add_argument("--outfmt", default="BIN", choices=["BIN"])
    parser.add_argument("--loop", "-l", type=positive, default=1)
    parser.add_argument("--device", "-d", type=devices, default=0)
    parser.add_argument("--batchsize", type=positive)
    parser.add_argument("--warmup_count", type=not_negative, default=1)
    if GENERATION == "N":
        parser.add_argument("--threads", type=positive, default=1)
        parser.add_argument("--pipeline", default="0")
    if FAULT == "ais-other-flags":
        parser = argparse.ArgumentParser(prog="ais_bench")
        parser.add_argument("--om-model", required=True)
    args = parser.parse_args()
    if GENERATION == "N":
        check_paths(parser, args)
    return args


def log(level, text):
    print(f"[{level}] {text}", flush=True)


# --- the model ------------------------------------------------------------------------------------


class Session:
    """Loads an .om, or says what the C++ part would say."""

    def __init__(self, path, device):
        cards = os.environ.get("ASCEND_RT_VISIBLE_DEVICES", "0,1").split(",")
        if device >= len(cards) or int(cards[device]) > 1:
            log("ERROR", f"acl open device {device} failed")
            raise RuntimeError("[507033][ACL: device open failed]")
        if not os.path.isfile(path):
            self.refuse(path, "")
        with open(path, "rb") as file:
            content = file.read()
        if not content.startswith(MARK):
            self.refuse(path, "")
        about, self.onnx = content.removeprefix(MARK).split(b"\n", 1)
        about = json.loads(about)
        if about["soc"] != f"Ascend{SOC}":
            reason = (
                f"EE1001: supported socVersion=Ascend{SOC}, but the model socVersion={about['soc']}"
            )
            self.refuse(path, reason)
        if about["memory"] > MEMORY:
            reason = (
                "EL0004: Failed to allocate memory. Possible cause: Available memory is "
                f"insufficient, size={about['memory']}"
            )
            self.refuse(path, reason)
        import onnx

        model = onnx.load_from_string(self.onnx)
        self.inputs = [
            [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in model.graph.input
        ]
        for value in [*model.graph.input, *model.graph.output]:
            value.type.tensor_type.shape.dim[
                0
            ].dim_value = 1  # sample by sample: a batch of a card's size would need its memory
        del model.graph.value_info[:]
        self.model, self.runner = model, None
        log("INFO", f"load model {path} success")
        log("INFO", "create model description success")

    @staticmethod
    def refuse(path, message):
        if (
            message and FAULT == "ais-cause-in-plog"
        ):  # the console then says no more than that the model was not loaded
            place = pathlib.Path(os.environ["HOME"]) / "ascend" / "log" / "debug" / "plog"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"plog-{os.getpid()}_20260101.log").write_text(
                f"[ERROR] GE(1,ais_bench): {message}\n"
            )
        elif message:
            print(message)
        log("ERROR", f"load model from file failed, model file is {path}")
        raise RuntimeError("[1][ACL: invalid parameter]")

    def run(self, arrays):
        """One batch; every sample of it alone."""
        if self.runner is None:
            import onnxruntime

            settings = onnxruntime.SessionOptions()
            settings.log_severity_level = 4
            self.runner = onnxruntime.InferenceSession(
                self.model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
            )
            self.names = [value.name for value in self.runner.get_inputs()]
        for sample in range(len(arrays[0])):
            yield self.runner.run(
                None,
                dict(
                    zip(self.names, (array[sample : sample + 1] for array in arrays), strict=True)
                ),
            )


# --- files ----------------------------------------------------------------------------------------


def natural(name):
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def list_files(folder):
    if not os.path.exists(folder):
        log("ERROR", f"Invalid args. {folder} of input args is not a real dir path")
        raise RuntimeError()
    names = sorted(
        name for name in os.listdir(folder) if name.endswith((".bin", ".BIN", ".npy", ".NPY"))
    )
    if not names:
        log(
            "ERROR",
            f"{folder} of input args not find valid file,"
            "valid file format:[*.npy *.NPY *.bin *.BIN]",
        )
        raise RuntimeError()
    if os.environ.get("STANDIN_SORT", "natural") == "natural":
        names.sort(key=natural)
    return [os.path.join(folder, name) for name in names]


def check_paths(parser, args):
    """The newer tool's rules, checked by argparse: no links, rights, letters."""
    inputs = [path for path in (args.input or "").split(",") if path]
    inside = [
        os.path.join(path, name)
        for path in inputs
        if os.path.isdir(path)
        for name in os.listdir(path)
    ]
    for path in [args.model, *inputs, *inside, args.output]:
        why = ""
        if not re.fullmatch(r"[_A-Za-z0-9/.\-]+", path):
            why = f"{path} contains illegal char"
        elif not os.path.exists(path) and path != args.output:
            why = f"path {path} not exist"
        elif os.path.islink(path):
            why = f"path {path} is link, soft link is not supported"
        elif os.path.exists(path) and os.stat(path).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            why = f"{path}: permission should not be over 0o755"
        elif os.path.exists(path) and os.stat(path).st_uid != os.getuid():
            why = f"{path}: current user is not the owner"
        if why:
            log("ERROR", why)
            parser.error(f"argument: {path} is illegal. Please check.")
    if not args.model.endswith(".om"):
        parser.error(f"argument --model: {args.model} is illegal. Please check.")


def batches(files, session):
    """Tuples of file names per input for each call, the last one filled up with the marker of
    padding.
    """
    size = 4 * int(np.prod(session.inputs[0]))
    first = os.path.getsize(files[0][0])
    per_batch = session.inputs[0][0]
    if first * per_batch != size:
        log("ERROR", f"arg0 tensorsize: {size} filesize: {first} not match")
        raise RuntimeError()
    count = -(-len(files[0]) // per_batch)
    log(
        "INFO",
        f"get filesperbatch files0 size:{first} tensor0size:{size} "
        f"filesperbatch:{per_batch} runcount:{count}",
    )
    for number in range(count):
        chunk = []
        for names in files:
            mine = names[number * per_batch : (number + 1) * per_batch]
            chunk.append(mine + [PADDING] * (per_batch - len(mine)))
        yield chunk


def read_batch(names, shape):
    data = b"".join(
        pathlib.Path(names[0] if name == PADDING else name).read_bytes() for name in names
    )
    wanted = 4 * int(np.prod(shape))
    if len(names) == 1 and len(data) != wanted:
        log("ERROR", f"Check i:0 name:image in size:{len(data)} needsize:{wanted} not match")
        raise RuntimeError("[-1][ACL: general failure]")
    if len(data) != wanted:
        raise RuntimeError(f"ndata size:{len(data)} not match {wanted}")
    return np.frombuffer(data, np.float32).reshape(shape)


def save(folder, name, index, array):
    stem = os.path.basename(name).split(".")[0]
    path = os.path.join(folder, f"{stem}_{index}.bin")
    if FAULT == "ais-nan":
        array = np.full_like(array, np.nan)
    if FAULT == "ais-short" and stem.strip("0") == "":
        array = array.reshape(-1)[:-1]
    array.tofile(path)
    if GENERATION == "N":
        os.chmod(path, 0o640)
    return path


# --- a run ----------------------------------------------------------------------------------------


def statistics(values):
    values = values or [0.0]
    return {
        "min": float(np.min(values)),
        "max": float(np.max(values)),
        "mean": float(np.mean(values)),
        "median": float(np.median(values)),
        "percentile(99%)": float(np.percentile(values, 99)),
        "count": len(values),
    }


def fail_later():
    """What goes wrong after the first output."""
    if FAULT == "ais-half":
        print("EZ9999: Inner Error! aicore exception, error code is 507011")
        log("ERROR", "execute model failed, modelId is 1")
        raise RuntimeError("[-1][ACL: general failure]")
    if FAULT == "ais-oom-malloc":
        log("ERROR", "MemoryHelper::MxbsMalloc failed. size:4294967296 type:1 ret:2")
        log("ERROR", "can't malloc buffer")
        raise RuntimeError("[2][ACL: memory allocation fail]")
    if FAULT == "ais-oom-run":
        log("ERROR", "execute model failed, modelId is 1")
        raise RuntimeError("[-1][ACL: general failure]")
    if FAULT == "ais-killed":
        os.kill(os.getpid(), signal.SIGSEGV)


def infer(args, device, files, folder, summary_prefix):
    session = Session(args.model, device)
    batch = session.inputs[0][0]
    times, info = [], {}
    if FAULT == "ais-hangs":
        helper = os.fork()  # a tool that hangs may have started others
        if helper and "STANDIN_PIDS" in os.environ:
            pathlib.Path(os.environ["STANDIN_PIDS"]).write_text(f"{os.getpid()} {helper}")
        time.sleep(3600)
    if files is None:
        log("INFO", f"warm up {args.warmup_count} done")
        # copied to and from the card once for all repetitions, one copy per input and output
        calls = 1
        times = [
            TIMES_MS.get(batch, 1300.0 * batch) * (1 + 0.001 * (number % 3 - 1))
            for number in range(args.loop)
        ]
        zeros = np.zeros([batch, 2, *session.inputs[0][2:]], np.float32)
        info["0"] = {
            "infiles": ["pure_infer_data"] * len(session.inputs),
            "outfiles": [save(folder, "pure_infer_data", 0, zeros)],
        }
    else:
        log("INFO", f"warm up {args.warmup_count} done")
        sample = 0
        for names in batches(files, session):
            start = time.perf_counter()
            arrays = [
                read_batch(mine, shape) for mine, shape in zip(names, session.inputs, strict=True)
            ]
            real = [name for name in names[0] if name != PADDING]
            results = session.run([array[: len(real)] for array in arrays])
            for place, outputs in zip(range(len(real)), results, strict=True):
                if sample >= 1:
                    fail_later()
                if FAULT == "ais-one-missing" and sample == 0:
                    sample += 1
                    continue
                written = [
                    save(folder, names[0][place], index, array)
                    for index, array in enumerate(outputs)
                ]
                info[str(sample)] = {
                    "infiles": [mine[place] for mine in names],
                    "outfiles": written,
                }
                sample += 1
            times.append(1000 * (time.perf_counter() - start))
        calls = len(times)
    size = args.batchsize or batch
    throughput = 1000 * size / float(np.mean(times))
    log("INFO", "-----------------Performance Summary------------------")
    s = statistics(times)
    log(
        "INFO",
        f"NPU_compute_time (ms): min = {s['min']}, max = {s['max']}, mean = {s['mean']}, "
        f"median = {s['median']}, percentile(99%) = {s['percentile(99%)']}",
    )
    log(
        "INFO",
        f"throughput 1000*batchsize.mean({size})/NPU_compute_time.mean({s['mean']}): {throughput}",
    )
    log("INFO", "------------------------------------------------------")
    if FAULT != "ais-no-summary":
        pairs = GENERATION == "N" and args.threads > 1 and args.pipeline != "0"
        listed = (
            [[10.0 * number, 10.0 * number + value] for number, value in enumerate(times)]
            if pairs
            else times
        )
        content = {
            "filesinfo": info, "args": sys.argv, "NPU_compute_time": s,
            "H2D_latency": statistics([1.0 * batch] * len(session.inputs) * calls),
            "D2H_latency": statistics([1.0 * batch] * calls),
            "throughput": throughput, "npu_compute_time_list": listed, "pid": os.getpid(),
            "simulated": "written by a stand-in for ais_bench",
        }  # fmt: skip
        with open(summary_prefix + "_summary.json", "w") as file:
            json.dump(content, file, indent=1)


def main():
    args = get_args()
    print("[SIMULATED] a stand-in for ais_bench")
    files = None
    if args.input:
        folders = args.input.split(",")
        probe = Session(args.model, 0)
        if len(folders) != len(probe.inputs):
            log(
                "ERROR",
                f"Invalid args. args input dir num:{len(folders)} "
                f"not equal to model inputs num:{len(probe.inputs)}",
            )
            raise RuntimeError()
        files = [list_files(folder) for folder in folders]
        if any(len(names) < len(files[0]) for names in files):
            raise RuntimeError("error input, the numbers of files differ")
    if FAULT == "ais-success-nothing":
        log("INFO", "throughput 1000*batchsize.mean(1)/NPU_compute_time.mean(1.0): 1000.0")
        return
    base = os.path.join(args.output, args.output_dirname)
    os.makedirs(base, 0o755, exist_ok=True)
    if GENERATION == "N":
        os.chmod(args.output, 0o750)
        os.chmod(base, 0o750)
    if not isinstance(args.device, list):
        infer(args, args.device, files, base, base)
        return
    for index, device in enumerate(args.device):
        name = f"device{device}" if GENERATION == "T" else f"device{device}_{index}"
        folder = os.path.join(base, name)
        os.makedirs(folder, exist_ok=True)
        share = -(-len(files[0]) // len(args.device))
        mine = [names[index * share : (index + 1) * share] for names in files]
        mine = mine if GENERATION == "T" else files
        if FAULT == "ais-worker-died" and index == 1:
            log("ERROR", "subprocess run failed error_callback:[507011][ACL: model execute failed]")
            sys.exit(1)
        infer(args, device, mine, folder, folder)


main()
