"""``gma plan``: the time, memory and disk of 04_infer with more workers."""

from pathlib import Path

import click

from gma_lib.cli.options import PATH
from gma_lib.flow.files import count_flow_bytes
from gma_lib.network.memory import predict_memory
from gma_lib.perf.schedule import Plan, list_seconds
from gma_lib.pipeline.chain import require_sources
from gma_lib.runs.records import read_json


@click.command("plan", epilog="Example: gma plan outputs/demo/openvino-float32/bs1")
@click.argument("run", type=PATH)
@click.option(
    "-n",
    "--workers",
    "counts",
    multiple=True,
    type=click.IntRange(1),
    help="Number of workers; may be repeated.  [default: 1, 2, 4, ... as many as there are shards]",
)
def main(run: Path, counts: tuple[int, ...]) -> None:
    """Estimate time, memory and disk of 04_infer on more workers, from RUN (a folder bs<N> of
    results).

    A shard is at most 16 pairs of one scene and pass. Those of RUN are replayed in order with their
    measured times, including the time to start, to load the model and to wait for the last shard.
    """
    inferred = read_json(run / "infer.json", made_by="04_infer")
    exported = read_json(run / "export.json", made_by="02_export")
    converted = read_json(run / "convert.json", made_by="03_convert")
    sources = {"02_export": exported, "03_convert": converted}
    require_sources(run / "infer.json", "04_infer", inferred["made_from"], sources)
    summary, size = inferred["summary"], exported["size"]
    names = (converted["backend"], converted["precision"], inferred["batch_size"])
    memory = predict_memory(*names, size["height"], size["width"], converted["at_once"])
    shards = len(list_seconds(summary))
    counts = counts or tuple(2**power for power in range((shards - 1).bit_length() + 1))
    click.echo(f"{'workers':>7}{'seconds':>10}{'busy':>7}{'memory':>10}  limited by")
    for plan in [Plan.of_summary(summary, count) for count in counts]:
        taken = f"{plan.workers * memory / 1e9:.1f} GB" if memory else "unknown"
        click.echo(
            f"{plan.workers:>7}{plan.seconds:>10,.1f}{plan.busy:>7.0%}{taken:>10}  {plan.limit}"
        )
    pairs = summary["computed"] + summary["reused"]
    # padded, and so a little more than the frames' own size
    flow = pairs * count_flow_bytes(size["height"], size["width"])
    click.echo(f"{pairs} pairs in {shards} shards; all flow: about {flow / 1e6:,.1f} MB")
    if summary["reused"]:
        click.echo(
            f"Assumed: the {summary['reused']} pairs that an earlier call computed take as long as "
            f"the {summary['computed']} of the last one"
        )
    click.echo(f"Assumed: every worker is as fast, on {summary['threads']} cores")
