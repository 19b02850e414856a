"""`tools/benchmark.py` from its command line to its files, with a worker that makes its times up."""

import json
import re
import sys
import textwrap

import benchmark as benchmark_tool
import pytest
import yaml

# Peaks take 10 ms, training SLOW times 40 ms, and frozen or of a peer 20 ms.
FAKE = """
import json, os, sys
spec = json.loads(sys.stdin.readline())
is_frozen = "config" in spec and spec["config"]["freeze"]["freeze"]
seconds = 0.01 if spec["kind"] == "peak" else 0.02 if is_frozen or "config" not in spec else 0.04
if not is_frozen and "config" in spec:
    seconds *= float(os.environ.get("SLOW", 1))
if spec["kind"] == os.environ.get("DIES"):
    sys.exit("out of memory")
print(json.dumps(dict(ready=True, first_step_seconds=2, start_seconds=3, import_seconds=1)), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if "quit" in request:
        print(json.dumps(dict(peak_memory_bytes=2**30, flops=2e9)), flush=True)
        break
    print(json.dumps(dict(seconds=[seconds] * request["run"])), flush=True)
"""


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A benchmark's file, whose workers make times up."""
    script = tmp_path / "fake.py"
    script.write_text(textwrap.dedent(FAKE))
    monkeypatch.setattr(benchmark_tool, "WORKER", [sys.executable, str(script)])
    monkeypatch.setattr("detector.benchmark.rounds._SETTLE_SECONDS", 0)
    path = tmp_path / "small.yaml"
    workloads = [
        {"name": "full", "kind": "train", "batch_size": 1},
        {
            "name": "frozen",
            "kind": "train",
            "batch_size": 1,
            "set": ["freeze.freeze=[rpn]"],
            "reference": "full",
        },
    ]
    path.write_text(yaml.safe_dump({"rounds": 2, "repeats": 3, "classes": 4, "workloads": workloads}))
    return path


def test_a_benchmark_is_stored_and_compared(small, capsys, monkeypatch):
    assert (
        benchmark_tool.main([str(small), "--against", f"other={sys.executable} {small.parent}/fake.py"]) == 0
    )
    printed = capsys.readouterr().out
    assert re.search(r"frozen .* 20\.0 ms .* 100 +50% +0\.500 +1\.00 GiB +2\.00 s", printed)
    folder = small.parent / "results"
    assert {path.name for path in folder.iterdir()} == {"small.json", "small.md", "small.png"}
    result = json.loads((folder / "small.json").read_text())
    ratios = {(r["workload"], r["reference"]): r["time"]["median"] for r in result["ratios"]}
    assert ratios == {("full", "other train"): 2.0, ("frozen", "full"): 0.5}
    # The peak is 2 GFLOP in 10 ms; so much in 40 ms is a quarter of it.
    assert [w["peak_part"]["median"] for w in result["workloads"]] == [0.25, 0.5, 0.5]
    assert len(result["samples"]) == 2 and len(result["samples"][0]["full"]) == 3
    page = (folder / "small.md").read_text()
    assert "| full | other train | 2.000 |" in page and "python tools/benchmark.py small.yaml" in page
    assert (folder / "small.png").read_bytes()[:4] == b"\x89PNG"
    before = (folder / "small.json").read_text()

    # Full steps a twentieth slower are within what a shared machine does; a fifth slower are not.
    compare = [str(small), "--compare", "--against", f"other={sys.executable} {small.parent}/fake.py"]
    monkeypatch.setenv("SLOW", "1.05")
    assert benchmark_tool.main(compare) == 0
    assert "0 of 7 ratios are worse by more than 10%" in capsys.readouterr().out
    monkeypatch.setenv("SLOW", "1.2")
    assert benchmark_tool.main(compare) == 1
    printed = capsys.readouterr().out
    assert "REGRESSION  full / other train, time: 2.000 -> 2.400 (20% worse)" in printed
    assert "REGRESSION  full, part of the float32 peak: 0.250 -> 0.208 (20% worse)" in printed
    assert "frozen / full, time: 0.500 -> 0.417 (17% better)" in printed and "2 of 7 ratios" in printed
    assert (folder / "small.json").read_text() == before


def test_results_of_two_calls_are_compared(small, tmp_path, capsys, monkeypatch):
    assert benchmark_tool.main([str(small)]) == 0
    monkeypatch.setenv("SLOW", "2")
    assert benchmark_tool.main([str(small), "--output", str(tmp_path / "fresh")]) == 0
    capsys.readouterr()
    fresh = tmp_path / "fresh" / "small.json"
    assert benchmark_tool.main([str(small), "--compare", str(fresh)]) == 1
    assert "full, part of the float32 peak: 0.250 -> 0.125 (100% worse)" in capsys.readouterr().out
    values = json.loads(fresh.read_text())
    fresh.write_text(json.dumps({**values, "machine": {**values["machine"], "cores": 512}}))
    assert benchmark_tool.main([str(fresh.parent.parent / "small.yaml"), "--compare", str(fresh)]) == 1
    assert "another machine: its ratios carry over only roughly" in capsys.readouterr().out


def test_a_benchmark_of_several_starts(small, capsys):
    assert benchmark_tool.main([str(small), "--starts", "2"]) == 0
    printed = capsys.readouterr().out
    assert "start 2 of 2" in printed and printed.count("round 2 of 2") == 2
    result = json.loads((small.parent / "results" / "small.json").read_text())
    assert (result["starts"], len(result["samples"])) == (2, 4)
    page = (small.parent / "results" / "small.md").read_text()
    assert "medians of 2 alternating rounds in each of 2 starts" in page and "small.yaml --starts 2" in page


def test_workloads_of_the_command_line(small, capsys):
    workloads = [
        "--workload",
        "t=train batch_size=2",
        "--workload",
        "f=train freeze.freeze=[rpn] reference=t",
    ]
    assert benchmark_tool.main([*workloads, "--rounds", "1", "--repeats", "1"]) == 0
    printed = capsys.readouterr().out
    # Times are per repetition and of no file: frozen ones are of the configuration's 8 images.
    assert "round 1 of 1" in printed and re.search(r"f +t +0\.125", printed)
    assert not (small.parent / "results").exists()


def test_a_worker_that_dies_is_told_with_its_last_words(small, capsys, monkeypatch):
    monkeypatch.setenv("DIES", "train")
    assert benchmark_tool.main([str(small)]) == 1
    error = capsys.readouterr().err
    assert "error: full ended with exit code 1" in error and "  out of memory" in error
    assert not (small.parent / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["FILE", "--compare"], "no result"),
        (["--compare"], "--compare needs a benchmark's FILE"),
        (["FILE", "--config", "configs/shapes.yaml"], "has its own config and workloads"),
        (["FILE", "--workload", "a=train"], "has its own config and workloads"),
        (["FILE", "--rounds", "0"], "rounds: Input should be greater than or equal to 1"),
        (["--workload", "a=tain"], "where KIND is one of train"),
        (["no/such.yaml"], "no benchmark no/such.yaml"),
        (["FILE", "--set", "model.rpm.l2=1"], "unknown key 'model.rpm'"),
    ],
)
def test_a_users_mistake_is_one_message(arguments, message, small, capsys):
    arguments = [str(small) if argument == "FILE" else argument for argument in arguments]
    assert benchmark_tool.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_the_protocol_is_in_the_help(capsys):
    with pytest.raises(SystemExit):
        benchmark_tool.main(["--help"])
    printed = capsys.readouterr().out
    for key in (
        "started_at",
        "first_step_seconds",
        "peak_memory_bytes",
        '"run"',
        '"quit"',
        '"error"',
        "flops",
    ):
        assert key in printed
