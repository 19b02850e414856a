from importlib.util import find_spec
from pathlib import Path

import pytest

from detector.benchmark.jobs import groups_of, jobs_of
from detector.benchmark.spec import amended, parse_workload, parse_workloads, read_benchmark
from detector.config import ConfigError

FILES = sorted((Path(__file__).resolve().parents[1] / "benchmarks").glob("*.yaml"))
OWN = ["python", "own.py"]


def benchmark(*workloads, **keys):
    texts = workloads or ("train=train", "frozen=train freeze.freeze=[rpn] reference=train", "infer=infer")
    return amended(
        parse_workloads(texts),
        {"set": ("model.resizer={kind: fixed_shape, height: 64, width: 96}",), **keys},
    )


def jobs(*workloads, **keys):
    return {job.name: job for job in jobs_of(benchmark(*workloads, **keys), OWN)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_benchmarks_can_be_run(path):
    found = jobs_of(read_benchmark(path), OWN)
    assert len(found) > 4
    assert f"python tools/benchmark.py benchmarks/{path.name}" in path.read_text()


def test_a_workload_is_settings_of_the_configuration_and_keys_of_its_own():
    frozen = jobs("t=train", "f=train freeze.freeze=[rpn] batch_size=3 reference=t repeats=2")["f"]
    assert frozen.references == ("t",) and frozen.turn.repeats == 2
    assert (frozen.spec["batch_size"], frozen.spec["height"], frozen.spec["width"]) == (3, 64, 96)
    config = frozen.spec["config"]
    assert config["freeze"]["freeze"] == ["rpn"] and config["freeze"]["allow_fresh"]
    assert config["train"]["batch_size"] == config["evaluate"]["batch_size"] == 3
    assert frozen.command == tuple(OWN)


def test_the_batch_is_the_configurations_own_by_default():
    keys = {"set": ("train.batch_size=5", "evaluate.batch_size=7")}
    found = jobs("t=train", "i=infer", "e=evaluate", "p=input", **keys)
    assert {name: found[name].spec["batch_size"] for name in "tiep"} == {"t": 5, "i": 7, "e": 7, "p": 5}


def test_long_ones_are_done_once_a_turn_and_none_is_thrown_away():
    found = jobs("t=train", "e=evaluate images=7", repeats=4)
    assert (found["t"].turn.repeats, found["t"].turn.discard) == (4, 1)
    assert (found["e"].turn.repeats, found["e"].turn.discard) == (1, 0)
    assert found["e"].spec["images"] == 7


def test_a_canvas_is_a_square_of_that_size():
    assert jobs("t=train size=128")["t"].spec["height"] == jobs("t=train size=128")["t"].spec["width"] == 128


def test_a_peer_runs_once_for_every_shape_in_which_nothing_is_frozen():
    found = jobs(
        "t=train",
        "again=train train.seed=1",
        "two=train batch_size=2",
        "frozen=train freeze.freeze=[rpn] reference=t",
        "configured=train data=configured",
        "i=infer",
        against=("other=python other.py --fast",),
    )
    peers = {name: job for name, job in found.items() if job.peer}
    assert set(peers) == {"other train", "other train 96x64 batch 2", "other infer"}
    assert peers["other train"].command == ("python", "other.py", "--fast")
    assert peers["other train"].spec == {
        **{"kind": "train", "batch_size": 1, "height": 64, "width": 96},
        **{"classes": 90, "boxes": 8},
    }
    assert found["t"].references == found["again"].references == ("other train",)
    assert found["two"].references == ("other train 96x64 batch 2",)
    assert found["frozen"].references == ("t",) and found["configured"].references == ()
    assert found["i"].references == ("other infer",)


@pytest.mark.parametrize("name", ["model_garden", "object_detection_api"])
def test_peers_that_are_built_in(name):
    peer = jobs("t=train", against=(name,))[f"{name} train"]
    assert peer.command[1:] == ("-m", f"detector.benchmark.{name}")
    assert find_spec(peer.command[2]) is not None


def test_who_takes_turns_with_whom():
    peaks = ["float32 peak", "bfloat16 peak"]
    found = jobs_of(benchmark(), OWN)
    assert groups_of(found, "all") == [[*peaks, "train", "frozen", "infer"]]
    assert groups_of(found, "pairs") == [[*peaks, "train", "frozen"], [*peaks, "infer"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frozen", "--workload takes NAME=KIND"),
        ("frozen=tain", "where KIND is one of train, infer, input, evaluate, startup"),
        ("a=train images=7", "images goes with kind: evaluate"),
        ("a=train saved_model=true", "saved_model goes with kind: infer"),
        ("a=input gflop=3", "gflop goes with kind: train"),
        ("a=startup", "startup runs tools/train.py on the configuration's own data: set data: configured"),
        ("a=train batch=3", "--workload a=train batch=3: batch: Extra inputs"),
        ("a=train reference=a", "a workload cannot be its own reference"),
    ],
)
def test_a_workload_that_is_none(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_workload(text)


@pytest.mark.parametrize(
    ("workloads", "keys", "message"),
    [
        (["a=train", "a=infer"], {}, "two workloads are called 'a'"),
        (["float32 peak=train"], {}, "two workloads are called 'float32 peak'"),
        (["a=train reference=b"], {}, "a: no workload is called 'b', its reference; there are a"),
        (["a=train"], {"rounds": 0}, "rounds: Input should be greater than or equal to 1"),
        (
            ["a=train"],
            {"against": ("detectron",)},
            "--against takes model_garden, object_detection_api, or NAME=COMMAND",
        ),
        (
            ["a=train"],
            {"against": ("other=",)},
            "--against takes model_garden, object_detection_api, or NAME=COMMAND",
        ),
        (["a=train modle.precision=bfloat16"], {}, "a: unknown key 'modle"),
    ],
)
def test_a_benchmark_that_is_none(workloads, keys, message):
    with pytest.raises(ConfigError, match=message):
        jobs(*workloads, **keys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no benchmark .*missing.yaml"),
        ("[1, 2]", "expected a mapping with workloads, got list"),
        ("a: [", "not YAML"),
        ("rounds: 3", "workloads: Field required"),
    ],
)
def test_a_file_that_is_none(text, message, tmp_path):
    path = tmp_path / "missing.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_benchmark(path)
