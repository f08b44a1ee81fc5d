"""What the pages say of each measurement: one function a block, each from one record.

``pages.py`` writes them into README and docs; a block named ``NAME`` there is written by the
function NAME here.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from gma_lib import runs
from gma_lib.data import PASSES
from gma_lib.perf.comparison import UNSTABLE_SPREAD, measure_spread, tabulate_comparison
from gma_lib.perf.half_precision import tabulate_study
from gma_lib.perf.summary import find_peak_memory
from gma_lib.pipeline.stages import STAGES
from gma_lib.runs.machine import name_commit

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CARD = ROOT / "weights" / "gma-procedural.json"
BACKEND = "openvino"
FRAMES = {"height": 440, "width": 1024}
# What the pages and the names of commands say of a record: no other settings stand there.
CLAIMED: dict[str, dict[str, object]] = {
    "cpu": FRAMES | {"checkpoint": "gma-procedural"},
    "updates-12": FRAMES | {"checkpoint": "gma-procedural"},
    "updates-32": FRAMES | {"checkpoint": "gma-procedural"},
    "precision": FRAMES | {"weights": "gma-procedural", "backend": BACKEND, "num_updates": 6},
    "without-amx": FRAMES | {"checkpoint": "gma-procedural"},
    "half-precision": {"checkpoint": "gma-procedural"},
    "aggregation": {"num_updates": 6},
}
UPDATES = {"cpu": 6, "updates-12": 12, "updates-32": 32}  # of every variant


def locate(name: str) -> Path:
    return CARD if name == "card" else RESULTS / f"{name}.json"


def read(name: str) -> runs.Record:
    """Read what a measurement found; BadFile where its settings are others than the pages say."""
    found = runs.load_record(locate(name), f"what `make numbers` measured as {name}")
    for key, wanted in CLAIMED.get(name, {}).items():
        require(name, found.get(key) == wanted, f"{key} is {found.get(key)}", f"{wanted}")
    for variant, one in found["variants"].items() if name in UPDATES else ():
        updates, wanted = one["settings"]["num_updates"], UPDATES[name]
        require(name, updates == wanted, f"{variant}: {updates} updates", f"{wanted}")
    return found


def _read_variant(variant: str) -> runs.Record:
    """A variant of cpu.yaml; BadFile where it could not be measured."""
    one: runs.Record = read("cpu")["variants"][variant]
    require("cpu", "error" not in one, f"{variant}: {one.get('error')}", "a measurement")
    return one


def require(name: str, is_so: bool, found: str, wanted: str) -> None:
    if not is_so:
        raise runs.BadFile(locate(name), found, f"{wanted}, as the pages say", "Measure it again")


def tell_origin(command: str, record: runs.Record, *, short: bool = False) -> str:
    """Return command, commit, machine and date of a measurement, whether others disturbed it, and
    which weights were measured where those are not the bundled ones now; unless ``short`` also the
    note that it has.
    """
    made = record["provenance"]
    machine = made["machine"]
    note = f"; {record['note']}" if record.get("note") and not short else ""
    busy = "; **the machine was busy**" if record.get("load", {}).get("busy") else ""
    # older records name no weights; gma precision has a name of its own for them
    weights = record.get("checkpoint_sha256") or record.get("weights_sha256")
    is_other = weights not in (None, read("card")["sha256"])
    other = f"; **other weights than today's, SHA-256 {weights[:12]}**" if is_other else ""
    return (
        f"`{command}`, commit {name_commit(made['commit'])}, "
        f"{machine['processor']}, {machine['cores']} core{'s' * (machine['cores'] != 1)}, "
        f"{made['created'][:10]}{note}{other}{busy}."
    )


def _table(titles: list[str], rows: list[list[str]]) -> str:
    head, *others = (f"| {' | '.join(line)} |" for line in (titles, *rows))
    return "\n".join([head, f"|{'---|' * len(titles)}", *others])


def _compare(name: str) -> str:
    found = read(name)
    origin = tell_origin(f"gma bench benchmarks/{name}.yaml", found)
    return f"{tabulate_comparison(found)}\n\n{origin}"


def speed() -> str:
    """README: four variants, by their ratio to the guide's graph."""
    shown = {
        "guide's graph, ONNX Runtime": "guide's graph, ONNX Runtime, float32",
        "all steps, OpenVINO": "OpenVINO, float32",
        "bfloat16": "OpenVINO, bfloat16",
        "int8": "OpenVINO, int8",
    }
    found = read("cpu")
    rows = []
    for name, label in shown.items():
        one = _read_variant(name)
        memory = (find_peak_memory(one) or 0) / 1e9
        if rows:
            rate = " (unstable)" if one["caution"] else ""
        else:  # the guide's graph, whose ratio to itself is always 1
            vary = ", unstable" if measure_spread(one["samples_s"]) > UNSTABLE_SPREAD else ""
            rate = f" ({1 / one['median_s']:.1f} pairs/s{vary})"
        rows.append([label, f"{one['ratio']:.2f}{rate}", f"{memory:.2f} GB"])
    table = _table(["runtime, precision", "speed", "peak memory"], rows)
    return f"{table}\n\n{tell_origin('make bench', found, short=True)}"


def accuracy() -> str:
    """README: float32 on the demo set."""
    found = read("demo")
    exact = found["rows"]["float32"]
    rows = [
        [name, f"{exact['epe'][name]:.2f} px", f"{100 * exact['px1'][name]:.1f} %"]
        for name in PASSES
    ]
    table = _table(["pass", "EPE", "1px"], rows)
    return f"{table}\n\n{tell_origin('make reproduce', found)}"


def demo() -> str:
    """Every precision on the demo set."""
    found = read("demo")
    rows = []
    for precision, one in found["rows"].items():
        sizes = list(one["peak_rss_bytes"])
        rows.append(
            [
                f"{precision}, batch size {' and '.join(sizes)}",
                " / ".join(f"{one['epe'][name]:.4f}" for name in PASSES),
                " / ".join(f"{100 * one['px1'][name]:.2f}" for name in PASSES),
                f"{one['distance']['mean']:.1g} / {one['distance']['max']:.1g}",
                " / ".join(f"{size / 1e9:.2f}" for size in one["peak_rss_bytes"].values()),
            ]
        )
    titles = ["precision", "EPE clean / final, px", "1px clean / final, %"]
    titles += ["distance from PyTorch float32, px (mean / max)", "peak memory, GB"]
    return f"{_table(titles, rows)}\n\n{tell_origin('gma reproduce, once a precision', found)}"


def cpu() -> str:
    """Every step against the guide's graph."""
    return _compare("cpu")


def updates_12() -> str:
    """The same with 12 updates."""
    return _compare("updates-12")


def updates_32() -> str:
    """The same with 32 updates."""
    return _compare("updates-32")


def without_amx() -> str:
    """Precisions along a sequence, measured by hand: few have such a processor."""
    return _compare("without-amx")


def headroom() -> str:
    """What the peak would allow."""
    bf16, batch = map(_read_variant, ("bfloat16", "bfloat16, batch of 16"))
    share = bf16["share_of_peak"]
    return (
        f"At peak throughput, 6 updates in bfloat16 would take {bf16['median_s'] * share:.2f} s "
        f"per pair, {bf16['ratio'] / share:.1f} times as fast as the baseline (by ratios of "
        "rounds, not by the medians in the table). Single pairs reach "
        f"{share:.0%} of that rate, and batches "
        f"{batch['share_of_peak']:.0%}."
    )


def _tell_speed_up(precision: str) -> str:
    ratios = [_read_variant(name)["ratio"] for name in (precision, "all steps, OpenVINO")]
    return f"{ratios[0] / ratios[1]:.1f}"


def bfloat16_speed_up() -> str:
    """How many times as fast as float32 on OpenVINO."""
    return _tell_speed_up("bfloat16")


def int8_speed_up() -> str:
    """How many times as fast as float32 on OpenVINO."""
    return _tell_speed_up("int8")


def precision() -> str:
    """What reduced precision costs on held-out scenes."""
    found = read("precision")
    rows = [
        [
            name,
            family,
            str(one["pairs"]),
            f"{one['epe_float32']:.3f}",
            f"{one['epe']:.3f}",
            f"{one['epe_loss']:+.2%}",
            f"{100 * one['px1_float32']:.2f}",
            f"{100 * one['px1']:.2f}",
            f"{round(one['px1_loss'], 2) + 0:+.2f}",
            f"{one['distance']:.3f}",
        ]
        for name, costs in found["precisions"].items()
        for family, one in costs["families"].items()
    ]
    titles = ["precision", "family", "scenes", "EPE float32", "EPE", "change", "1px float32, %"]
    titles += ["1px, %", "lost, points", "distance, px"]
    verdicts = [
        f"{name}: {'yes' if costs['recommended'] else 'no'}"
        for name, costs in found["precisions"].items()
    ]
    origin = tell_origin("gma precision", found)
    return f"{_table(titles, rows)}\n\nWithin both limits: {', '.join(verdicts)}. {origin}"


def half_precision() -> str:
    """What float16 does to the network, emulated."""
    found = read("half-precision")
    study = pd.DataFrame.from_dict(found["variants"], orient="index")
    origin = tell_origin("gma half-precision FOLDER", found)
    return f"{tabulate_study(study)}\n\n{len(found['pairs'])} pairs. {origin}"


def pictures() -> str:
    """What drew the pictures."""
    return tell_origin("python docs/pictures.py", read("pictures"))


def _name_real_pairs(scores: runs.Record) -> str:
    count = scores["sintel_frames"]["pairs"]
    return f"{'two' if count == 2 else count} real Sintel pairs"


def refined() -> str:
    """The network alone and refined, from the weights' card."""
    scores = read("card")["scores"]
    real = _name_real_pairs(scores)
    shown = {f"{real}, {name}": scores["sintel_excerpt"][name] for name in PASSES} | {
        f"held-out scenes, {name}": one for name, one in scores["held_out_families"].items()
    }
    rows = [
        [
            label,
            *(f"{100 * one[which]['all']['px1']:.1f} %" for which in ("12", "12 refined")),
            *(f"{one[which]['all']['epe']:.2f} px" for which in ("12", "12 refined")),
        ]
        for label, one in shown.items()
    ]
    titles = ["frames, 12 updates", "1px, network", "1px, refined", "EPE, network", "EPE, refined"]
    return _table(titles, rows)


def against_dis() -> str:
    """README: the bundled weights and DIS on real frames, from the weights' card."""
    scores = read("card")["scores"]
    clean = scores["sintel_excerpt"]["clean"]
    ours, better, dis = (
        (f"{found['epe']:.2f} px", f"{100 * found['px1']:.1f} %")
        for found in (clean[method]["all"] for method in ("12", "12 refined", "dis"))
    )
    return (
        f"On {_name_real_pairs(scores)} (clean, 12 updates): EPE {ours[0]}, 1px {ours[1]}; "
        f"with `--refine variational` {', '.join(better)}; OpenCV's DIS {', '.join(dis)}."
    )


def fast_motion() -> str:
    """README: the families of held-out scenes, which all have motion up to the same length."""
    families = read("precision")["precisions"]["bfloat16"]["families"].values()
    errors = [one["epe_float32"] for one in families]
    return (
        f"EPE {min(errors):.0f}-{max(errors):.0f} px on rendered scenes with motion up to 120 px."
    )


def aggregation() -> str:
    """What switching the aggregation off does on the demo set."""
    found = read("aggregation")
    clean = found["epe"]["clean"]
    of_all, occluded = (
        " to ".join(f"{clean[group][which]:.2f}" for which in ("with", "without"))
        for group in ("all", "occluded")
    )
    origin = tell_origin("python benchmarks/aggregation.py", found)
    return (
        f"On the {found['pairs']} clean pairs of the demo set ({found['num_updates']} updates), "
        f"switching it off ($\\gamma = 0$) changes the EPE of all pixels from {of_all} px and that "
        f"of occluded pixels from {occluded} px ({origin.removesuffix('.')})."
    )


DIS = "DIS (OpenCV, medium)"
DETERMINISM = {  # title of a column -> what `determinism.py` compares
    "frames, ground truth": ("frames", "truth"),
    "PyTorch": ("torch float32",),
    "ONNX Runtime": ("onnxruntime float32",),
    "OpenVINO": ("openvino float32",),
    "OpenVINO, bfloat16": ("openvino bfloat16",),
    "OpenVINO, int8": ("openvino int8",),
    "refinement": ("refinement of no motion",),
    "DIS": (DIS,),
    "Farneback": ("Farneback (OpenCV)",),
    "attention": ("attention, share",),
}
MOST_REFUSALS = 99  # that the record of a reader counts
FLOAT32 = ("torch float32", "onnxruntime float32", "openvino float32")


def _tell_small(numbers: Iterable[float | None]) -> str:
    """The largest; a record holds null where a number is not finite."""
    found = [*numbers]
    if None in found:
        return "not finite"
    return f"{most:.1e}" if (most := max(found)) else "0"


def determinism() -> str:
    """What other threads and instruction sets change."""
    found = read("determinism")
    rows = []
    for setting, differences in found["largest_difference"].items():
        name = "nothing" if setting.endswith("again") else setting
        cells = [
            _tell_small(differences[kind] for kind in kinds)
            if all(kind in differences for kind in kinds)
            else "refused"
            for kinds in DETERMINISM.values()
        ]
        rows.append([f"`{name}`" if "=" in name else name, *cells])
    origin = tell_origin("python benchmarks/determinism.py outputs/determinism", found)
    return f"{_table(['changed', *DETERMINISM], rows)}\n\n{origin}"


def distance() -> str:
    """How far the runtimes and precisions are from PyTorch."""
    found = read("determinism")["distance_from_torch"]
    titles = {kinds[0]: title for title, kinds in DETERMINISM.items()}
    rows = [
        [name, *(f"{one[which]:.2g} px" for one in found.values())]
        for name, which in (("mean", "mean"), ("largest", "max"))
    ]
    return _table(["distance from PyTorch", *(titles[variant] for variant in found)], rows)


def moved_scores() -> str:
    """How far other threads and instruction sets move scores: float32, DIS."""
    settings = read("determinism")["largest_difference_of_scores"].values()

    def find_most(what: str, *kinds: str) -> float:
        most: float = max(one[kind][what] for one in settings for kind in kinds if kind in one)
        return most

    network, dis = ({what: find_most(what, *kinds) for what in ("epe", "share", "wauc")}
                    for kinds in (FLOAT32, (DIS,)))  # fmt: skip
    return (
        f"- EPE moved by at most {network['epe']:.1e} px (the network) and {dis['epe']:.1e} px "
        "(DIS).\n"
        f"- At most {network['share']:.0f} (the network) and {dis['share']:.0f} pixels (DIS) "
        "crossed a threshold of 1px, 3px, 5px or Fl.\n"
        f"- WAUC changed by at most {100 * network['wauc']:.1f}/N points (the network) and "
        f"{100 * dis['wauc']:.1f}/N points (DIS), where N is the number of pixels. One pixel that "
        "crosses one of the hundred thresholds changes it by up to 2/N."
    )


def rehearsal() -> str:
    """Time, memory and disk of every stage at the size of full Sintel."""
    found = read("rehearsal")
    shown = {"03_convert": ", with calibration"} if found["precision"] == "int8" else {}
    rows = []
    for stage, one in found["stages"].items():
        rate = f", {found['pairs'] / one['seconds']:.2f} pairs/s" if stage == "04_infer" else ""
        disk = one["disk_bytes"] / 1e6
        rows.append(
            [
                stage + shown.get(stage, ""),
                f"{one['seconds']:,.0f} s{rate}",
                f"{one['peak_bytes'] / 1e9:.2f} GB",
                f"{disk:,.0f} MB",
            ]
        )
    seconds = sum(one["seconds"] for name, one in found["stages"].items() if name in STAGES)
    seconds += found["stages"]["report"]["seconds"]
    origin = tell_origin("python benchmarks/rehearsal.py", found)
    made = f"{found['precision']}, CLUSTER={found['cluster']}"
    table = _table(["stage", "time", "memory", "disk"], rows)
    return f"{table}\n\nAll stages and the report ({made}): {seconds / 60:.0f} minutes. {origin}"


def _tell_results(results: dict[str, int]) -> str:
    return "; ".join(f"{count} {result}" for result, count in results.items()) or "not tried"


def _tell_cases(part: str, found: runs.Record) -> str:
    left = found["cases"] - found["done"]
    told = f"{found['done']} of {found['cases']} cases; the others were not run. " if left else ""
    return told + tell_origin(f"make torture PART={part}", found)


def kills() -> str:
    """Stages that were killed and resumed."""
    found = read("kills")
    whats = list(dict.fromkeys(what for tried in found["stages"].values() for what in tried))
    rows = [
        [stage, *(_tell_results(tried.get(what, {})) for what in whats)]
        for stage, tried in found["stages"].items()
    ]
    titles = [what.removesuffix(" moment") for what in whats]
    return f"{_table(['stage killed', *titles], rows)}\n\n{_tell_cases('kills', found)}"


def faults() -> str:
    """Bytes that were changed between two stages."""
    found = read("faults")
    rows = []
    for stage, tried in found["stages"].items():
        results = sum((Counter(results) for results in tried.values()), Counter[str]())
        rows.append([stage, ", ".join(f"`{kind}`" for kind in tried), _tell_results(results)])
    titles = ["byte changed after", "files changed, one of each kind", "result"]
    return f"{_table(titles, rows)}\n\n{_tell_cases('faults', found)}"


def settings() -> str:
    """Settings that were changed in a finished run."""
    found = read("settings")
    rows = [[what, _tell_results(results)] for what, results in found["stages"]["all"].items()]
    table = _table(["changed in a finished run to", "result"], rows)
    return f"{table}\n\n{_tell_cases('settings', found)}"


def readers() -> str:
    """Damaged files that were read."""
    found = read("readers")
    rows = [
        [
            name,
            f"{one['inputs']:,}",
            f"{one['results'] / one['inputs']:.0%}",
            f"{one['past_header'] / one['inputs']:.0%}",
            f"{one['refusals']}{' or more' * (one['refusals'] >= MOST_REFUSALS)}",
            f"{one['slowest_s']:.2f} s",
            f"{one['most_mb']:.0f} MB",
        ]
        for name, one in found["readers"].items()
    ]
    titles = ["reader", "inputs", "results", "past the header", "kinds of refusal", "slowest"]
    origin = tell_origin("make torture PART=readers", found)
    return f"{_table([*titles, 'most memory'], rows)}\n\n{origin}"


def graphs() -> str:
    """Random graphs that were rewritten."""
    found = read("graphs")
    shown = {
        "changed": "rewritten",
        "left as it is": "left as they are",
        "refused whole": "refused whole",
        "computes nothing": "not run by ONNX Runtime",
    }
    told = []
    for kind, label in (("random", "Random graphs"), ("pytorch", "PyTorch's graphs")):
        counts = [
            f"{found[kind][what]} {said}" for what, said in shown.items() if what in found[kind]
        ]
        told.append(f"{label}: {', '.join(counts)}")
    return f"{'. '.join(told)}. {tell_origin('make torture PART=graphs', found)}"


def _round(sentence: str) -> str:
    """A sentence whose numbers have few digits."""
    return re.sub(r"\d+\.\d{5,}(e-?\d+)?", lambda found: f"{float(found[0]):.5g}", sentence)


def computations() -> str:
    """Wrong computations that were verified."""
    found = read("computations")
    rows = [
        [name, str(one["exit_code"]), _round(one["worst"]) if one["exit_code"] else ""]
        for name, one in found["cases"].items()
    ]
    table = _table(["changed", "exit code", "worst entry"], rows)
    return f"{table}\n\n{tell_origin('make torture PART=computations', found)}"


BLOCKS: dict[str, Callable[[], str]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        speed, accuracy, demo, cpu, updates_12, updates_32, without_amx, headroom,
        bfloat16_speed_up, int8_speed_up, precision, half_precision, pictures, refined, against_dis,
        fast_motion, aggregation, determinism, distance, moved_scores, rehearsal, kills, faults,
        settings, readers, graphs, computations,
    )
}  # fmt: skip
