"""What the workers repeat, in this process and at a small size; whole workers, which are slow, on request."""

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import benchmark as benchmark_tool
import benchmark_worker
import numpy as np
import pytest
from small_runs import small_config

from data.random_images import random_image_dataset
from detector.benchmark.jobs import jobs_of
from detector.benchmark.process import WorkerError, WorkerProcess
from detector.benchmark.spec import Benchmark, parse_workload
from detector.benchmark.workloads import matrix_product, random_batches
from detector.config import load
from detector.cost import StageCost


@pytest.fixture
def spec(tiny_config, tmp_path, monkeypatch):
    """Return a function from a workload's text to what its worker is told, at the size of the tiny model."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def spec(text, *overrides):
        benchmark = Benchmark(workloads=(parse_workload(text),), classes=3, boxes=4)
        (job,) = (job for job in jobs_of(benchmark, [], tiny_config(*overrides)) if job.kind != "peak")
        return job.spec

    return spec


def test_random_batches_are_batches_of_the_contract(make_batch):
    batches = random_batches(2, 64, 48, 3, 5)
    real = make_batch(0)
    for batch in batches:
        assert {key: value.dtype for key, value in batch.items()} == {k: v.dtype for k, v in real.items()}
        assert batch["image"].shape == [2, 64, 48, 3] and batch["boxes_yxyx"].shape == [2, 5, 4]
        ymin, xmin, ymax, xmax = np.moveaxis(batch["boxes_yxyx"].numpy(), -1, 0)
        assert (ymin >= 0).all() and (ymax <= 64).all() and (ymax - ymin >= 8).all()
        assert (xmin >= 0).all() and (xmax <= 48).all() and (xmax - xmin >= 6).all()
        assert set(batch["classes"].numpy().ravel()) <= {0, 1, 2}
    assert (batches[0]["image"].numpy() == random_batches(2, 64, 48, 3, 5)[0]["image"].numpy()).all()
    assert (batches[0]["image"].numpy() != batches[1]["image"].numpy()).any()


def test_random_images_are_photographs_to_a_decoder(tmp_path):
    sizes = {"images": 40, "height": 96, "width": 128, "classes": 3, "boxes": 4}
    dataset = random_image_dataset(tmp_path, **sizes)
    assert len(dataset) == 40 and len(list(tmp_path.iterdir())) == 32
    assert dataset.class_names == ["class 1", "class 2", "class 3"]
    assert [example.image_id for example in dataset.examples] == list(range(1, 41))
    bits = 8 * np.mean([path.stat().st_size for path in tmp_path.iterdir()]) / (96 * 128)
    assert 3 < bits < 6  # a pixel; 4.2 in COCO


def test_a_cached_step_does_not_compute_what_is_kept(spec, monkeypatch):
    flops = {"feature_extractor/Mixed_3b": 500, "rpn": 70, "box_classifier/tower/Mixed_5a": 30}
    flops["box_classifier/predictor"] = 2
    costs = [StageCost(path, count) for path, count in flops.items()]
    monkeypatch.setattr("detector.benchmark.workloads.stage_costs", lambda model, canvas_hw: costs)
    predictor = "freeze.train_only=[box_classifier/predictor] model.batch_norm=fixed"
    prepared = benchmark_worker.prepare(spec(f"c=train train.cache=features {predictor}"))()
    prepared.repeat()
    # Two images; forward, and the gradient towards the predictor's own variables: nothing is handed on.
    assert prepared.flops() == 2 * 2 * 2


def test_a_cache_of_nothing_is_an_error(spec):
    start = benchmark_worker.prepare(spec("c=train train.cache=features"))
    with pytest.raises(ValueError, match="has nothing to measure: no features to cache"):
        start()


def test_detection(spec, monkeypatch):
    monkeypatch.setattr("detector.benchmark.workloads.inference_flops", lambda model, canvas_hw: 7.0)
    prepared = benchmark_worker.prepare(spec("i=infer batch_size=2"))()
    assert prepared.repeat() is None
    assert (prepared.images, prepared.flops()) == (2, 14.0)


def test_reading_batches(spec):
    prepared = benchmark_worker.prepare(spec("p=input batch_size=3"))()
    prepared.repeat()
    assert prepared.images == 16 * 3


def test_a_product_of_matrices_counts_its_operations(monkeypatch):
    monkeypatch.setattr("detector.benchmark.workloads._MATRIX_SIDES", (8,))
    prepared = matrix_product("bfloat16")
    prepared.repeat()
    assert prepared.flops() == 2 * 8**3 and prepared.images == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    ["t=train", "i=infer saved_model=true", "e=evaluate images=3 size=64", "p=input"],
)
def test_a_worker_of_this_package(text, spec, monkeypatch):
    told = spec(text)
    monkeypatch.undo()  # its own temporary folder again
    process = WorkerProcess("own", benchmark_tool.WORKER, told)
    try:
        assert len(process.run(2)) == 2
        assert process.finish().peak_memory_bytes > 2**28
    finally:
        process.kill()


@pytest.mark.slow
def test_a_startup_is_the_commands_through_its_first_step(tmp_path):
    benchmark = Benchmark(workloads=(parse_workload("s=startup data=configured"),))
    *_, job = jobs_of(benchmark, [], load(small_config(tmp_path)))
    process = WorkerProcess("own", benchmark_tool.WORKER, job.spec)
    try:
        (seconds,) = process.run(1)
        assert 0.5 < seconds < 60.0
    finally:
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["train", "infer"])
@pytest.mark.parametrize("peer", ["model_garden", "object_detection_api"])
def test_a_peers_worker(peer, kind):
    if peer == "object_detection_api" and find_spec("object_detection") is None:
        pytest.skip("the Object Detection API is not installed here")
    command = [sys.executable, "-m", f"detector.benchmark.{peer}"]
    process = WorkerProcess(peer, command, peer_spec(kind))
    try:
        assert len(process.run(1)) == 1
        assert process.finish().peak_memory_bytes > 2**28
    finally:
        process.kill()


def test_a_peer_that_is_not_installed_is_named():
    if find_spec("object_detection") is not None:
        pytest.skip("the Object Detection API is installed here")
    command = [sys.executable, "-m", "detector.benchmark.object_detection_api"]
    with pytest.raises(WorkerError, match=r"cannot be imported by .*No module named 'object_detection'"):
        WorkerProcess("object_detection_api", command, peer_spec("train"))


def peer_spec(kind):
    return {"kind": kind, "batch_size": 1, "height": 128, "width": 128, "classes": 3, "boxes": 2}


def test_the_worker_is_where_the_tool_looks_for_it():
    assert Path(benchmark_tool.WORKER[1]).is_file()
