"""``gma plan`` reads a run's records."""

from click.testing import CliRunner

from gma_lib.cli import main
from gma_lib.pipeline.chain import digest_record
from gma_lib.runs.records import read_json, write_json


def test_the_plan_of_a_run(tmp_path):
    shards = [
        {"first": f"clean/a/frame_{n:04d}", "worker": "worker 1", "start": n - 0.5, "seconds": 10}
        for n in (1, 2, 3)
    ]
    summary = {"computed": 3, "reused": 0, "threads": 4, "shards": shards}
    records = {
        "export": {"size": {"height": 440, "width": 1024}},
        "convert": {"backend": "openvino", "precision": "float32", "at_once": 1},
    }
    for name, record in records.items():
        write_json(tmp_path / f"{name}.json", record)
    made_from = {
        stage: digest_record(read_json(tmp_path / f"{name}.json", made_by=stage))
        for stage, name in (("02_export", "export"), ("03_convert", "convert"))
    }
    records["infer"] = {"batch_size": 1, "summary": summary, "made_from": made_from}
    write_json(tmp_path / "infer.json", records["infer"])
    done = CliRunner().invoke(main, ["plan", str(tmp_path), "-n", "1", "-n", "2"])
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.output.splitlines()]
    assert [row[:3] for row in rows[1:3]] == [["1", "30.5", "98%"], ["2", "20.5", "73%"]]
    assert "3 pairs in 3 shards" in done.output
    assert "10.8 MB" in done.output  # whether or not it is there
    write_json(tmp_path / "infer.json", records["infer"] | {"summary": summary | {"reused": 6}})
    resumed = CliRunner().invoke(main, ["plan", str(tmp_path), "-n", "1"])
    assert [line.split()[:2] for line in resumed.output.splitlines()][1] == ["1", "90.5"]
    assert "9 pairs in 9 shards" in resumed.output
    assert "the 6 pairs" in resumed.output
    write_json(tmp_path / "convert.json", records["convert"] | {"at_once": 4})  # of another run
    refused = CliRunner().invoke(main, ["plan", str(tmp_path)])
    assert refused.exit_code == 1
    assert "another result of 03_convert" in refused.output
    (tmp_path / "infer.json").unlink()
    refused = CliRunner().invoke(main, ["plan", str(tmp_path)])
    assert refused.exit_code == 1
    assert "04_infer" in refused.output
