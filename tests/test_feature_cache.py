"""Training from kept features is training: the same losses, and never from stale ones."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import tensorflow as tf

from detector import checkpoint
from detector.builder import build_model
from detector.config import ConfigError
from detector.evaluate import Evaluator
from detector.feature_cache import CacheStopped, ExampleViews, FeatureCache
from detector.freeze import resolve, rows_of
from detector.freeze_config import FreezeStageConfig
from detector.freeze_schedule import resolve_schedule
from detector.owned_folder import owned_folder
from detector.run_log import RunLog
from detector.train import Interrupted, fit

pytestmark = [
    pytest.mark.usefixtures("rewritten_graphs"),
    # TensorFlow's notice that data sets are not run eagerly.
    pytest.mark.filterwarnings("ignore:Even though the:UserWarning"),
]

CLASS_NAMES = ("circle", "square", "star")
ENTRIES = 5
HEADS = ["feature_extractor"]
PREDICTOR_ONLY = ["feature_extractor", "rpn", "box_classifier/tower"]


def plan_of(model, freeze):
    return resolve(rows_of(model.components, restored=model.variables_by_path), freeze, batch_norm="update")


def entry_at(position):
    return (3 * position + position // ENTRIES) % ENTRIES


@pytest.fixture
def examples(make_batch):
    """Return five examples, one by one."""
    return [make_batch(100 + entry, batch_size=1) for entry in range(ENTRIES)]


def joined(rows):
    return {key: tf.concat([row[key] for row in rows], axis=0) for key in rows[0]}


@pytest.fixture
def views(examples):
    """Return a function from a key to the five examples as views; `passes` counts how often all were read."""

    def make(key="five", batch_size=2, rows=examples, entry_at=entry_at):
        def batches():
            make.passes += 1
            for start in range(0, len(rows), batch_size):
                chunk = rows[start : start + batch_size]
                copies = [{**rows[-1], "image_id": tf.constant([-1], tf.int64)}] * (batch_size - len(chunk))
                yield joined(chunk + copies)

        return ExampleViews(batches, len(rows), key, entry_at)

    make.passes = 0
    return make


@pytest.fixture
def uncached(examples):
    """Return a function from a step to the batches from there on, of the same examples."""

    def from_step(step, batch_size=2):
        while True:
            positions = range(step * batch_size, (step + 1) * batch_size)
            yield joined([examples[entry_at(position)] for position in positions])
            step += 1

    return from_step


@pytest.fixture
def cache_of(tmp_path, views, tiny_config):
    """Return a function that makes a cache of the five examples."""

    def make(key="five", limit_bytes=10**9, batch_size=2, **how):
        return FeatureCache(
            tmp_path / "features",
            views(key, batch_size),
            limit_bytes=limit_bytes,
            model_config=tiny_config().model.model_dump(mode="json"),
            **how,
        )

    return make


def losses_of(run):
    names = ("rpn_box", "rpn_objectness", "box", "class", "gradient_norm")
    return [[row[name] for name in names] for row in run.read_metrics()]


def folders(tmp_path):
    return sorted((tmp_path / "features").iterdir())


@pytest.mark.parametrize("freeze", [HEADS, PREDICTOR_ONLY])
def test_the_losses_are_those_without_the_cache(
    freeze, tiny_model, tiny_config, cache_of, uncached, tmp_path, request
):
    if freeze != HEADS:
        request.getfixturevalue("eagerly")  # one traces its steps
    config = tiny_config("train.steps=2")
    runs = []
    for name, cache in (("with", cache_of()), ("without", None)):
        model, run = tiny_model(), RunLog(tmp_path / name)
        result = fit(model, plan_of(model, freeze), uncached, config, cache=cache, run=run)
        assert result.proof.holds
        runs.append(losses_of(run))
    np.testing.assert_allclose(runs[0][0], runs[1][0], rtol=1e-5)
    # At the second step the weights differ by the rounding of the first.
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-3)
    assert len(folders(tmp_path)) == 1


@pytest.fixture
def evaluator_of(tmp_path, views, tiny_config, examples):
    """Return a function that makes an evaluator of the five examples, by default with a cache."""
    truth = {
        "images": [{"id": int(row["image_id"][0]), "height": 64, "width": 64} for row in examples],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASS_NAMES)],
        "annotations": [],
    }

    def make(model, is_cached=True, **how):
        cached = views("evaluation", entry_at=None)
        cache = FeatureCache(
            tmp_path / "features",
            cached,
            limit_bytes=how.pop("limit_bytes", 10**9),
            model_config=tiny_config().model.model_dump(mode="json"),
        )
        return Evaluator(
            model,
            list(cached.batches()),
            truth,
            cache=cache if is_cached else None,
            cache_batch_size=2,
            **how,
        )

    return make


@pytest.mark.parametrize("freeze", [HEADS, PREDICTOR_ONLY])
def test_detections_are_those_without_the_cache(tiny_model, evaluator_of, views, freeze, request):
    if freeze == HEADS:
        request.getfixturevalue("eagerly")  # the other is traced
    model, told = tiny_model(), []
    plan = plan_of(model, freeze)
    with_cache, without = evaluator_of(model, note=told.append), evaluator_of(model, is_cached=False)
    passes = views.passes
    for _ in range(2):
        with_cache(plan)
        without(plan)
        assert len(with_cache.detections) == len(without.detections) > 0
        for mine, expected in zip(with_cache.detections, without.detections, strict=True):
            assert mine["image_id"] == expected["image_id"]
            assert mine["category_id"] == expected["category_id"]
            np.testing.assert_allclose(mine["score"], expected["score"], rtol=1e-5)
            np.testing.assert_allclose(mine["bbox"], expected["bbox"], rtol=1e-4, atol=1e-3)
        # What is not frozen moves, and the images are not looked at again.
        model.box_classifier.predictor.class_scores.bias.assign_add([0.5, 0.1, -0.3, 0.2])
    assert views.passes == passes + 1
    assert len(told) == 1
    assert told[0].startswith("evaluation: features after")


@pytest.mark.usefixtures("eagerly")
def test_features_of_what_moved_after_all_are_not_detected_on(tiny_model, evaluator_of, tmp_path):
    model = tiny_model()
    plan = plan_of(model, HEADS)
    with_cache, without = evaluator_of(model), evaluator_of(model, is_cached=False)
    with_cache(plan)
    moved = model.variables_by_path["feature_extractor/Mixed_4e/Branch_0/Conv2d_0a_1x1/kernel"]
    moved.assign(moved + 0.5)
    with_cache(plan)
    without(plan)
    assert [row["score"] for row in with_cache.detections] == pytest.approx(
        [row["score"] for row in without.detections], rel=1e-5
    )
    assert len(folders(tmp_path)) == 2


@pytest.mark.usefixtures("eagerly")
def test_an_evaluation_without_a_frozen_prefix_or_without_room_computes_all(tiny_model, evaluator_of):
    model, told = tiny_model(), []
    evaluator = evaluator_of(model, limit_bytes=1, note=told.append)
    for freeze in ([], HEADS):
        plan = plan_of(model, freeze)
        evaluator(plan)
        evaluator(plan)
    assert len(evaluator.detections) > 0
    assert [text.split(":")[1].strip() for text in told] == [
        "no features to cache",
        "features after feature_extractor/Mixed_4e are computed at every step",
    ]


@pytest.mark.usefixtures("eagerly")
def test_training_does_not_take_what_was_computed_for_detection(tiny_model, views, tmp_path, tiny_config):
    # Anchors across the edge propose in detection alone.
    model = tiny_model()
    plan = plan_of(model, PREDICTOR_ONLY)
    how = {"limit_bytes": 10**9, "model_config": tiny_config().model.model_dump(mode="json")}
    for at in (entry_at, None):
        FeatureCache(tmp_path / "features", views(entry_at=at), **how).open(model, plan, print)
    assert len(folders(tmp_path)) == 2


@pytest.mark.usefixtures("eagerly")
def test_a_cache_is_computed_once_and_used_again(tiny_model, cache_of, views, tmp_path):
    model = tiny_model()
    notes = []
    for _ in range(2):
        assert cache_of().open(model, plan_of(model, HEADS), notes.append) is not None
    assert views.passes == 1
    assert "computed once for 5 examples" in notes[0] and "made before" in notes[1]


def test_whatever_the_features_depend_on_makes_another_cache(tiny_model, cache_of, tmp_path, monkeypatch):
    def only_its_page(self, prefix, folder, parts, is_stopped):
        (folder / "cache.json").write_text(json.dumps({"fields": {}}))

    monkeypatch.setattr(FeatureCache, "_compute", only_its_page)
    model = tiny_model()
    variables = model.variables_by_path

    def caches_after_opening(cache, freeze=HEADS):
        cache.open(model, plan_of(model, freeze), print)
        return len(folders(tmp_path))

    assert caches_after_opening(cache_of()) == 1
    variables["rpn/conv/bias"].assign_add([1.0] * 8)  # it trains
    assert caches_after_opening(cache_of()) == 1
    assert caches_after_opening(cache_of(key="other examples")) == 2
    assert caches_after_opening(cache_of(storage="float16")) == 3
    assert caches_after_opening(cache_of(), ["feature_extractor[:Mixed_4c]"]) == 4
    other_model = cache_of()
    other_model._model_config["precision"] = "bfloat16"
    assert caches_after_opening(other_model) == 5
    statistic = variables["feature_extractor/Mixed_3b/Branch_0/Conv2d_0a_1x1/BatchNorm/moving_mean"]
    before = statistic.numpy()
    statistic.assign_add([1e-6] * 6)
    assert caches_after_opening(cache_of()) == 6
    statistic.assign(before)
    assert caches_after_opening(cache_of()) == 6


def test_a_plan_without_a_frozen_prefix_has_nothing_to_cache(tiny_model, cache_of, views):
    model, notes = tiny_model(), []
    assert cache_of().open(model, plan_of(model, ["rpn"]), notes.append) is None
    assert notes == ["no features to cache: what comes first in the model trains"]
    assert views.passes == 0


@pytest.mark.usefixtures("eagerly")
def test_features_beyond_the_limit_are_not_kept(
    tiny_model, tiny_config, cache_of, uncached, tmp_path, capsys
):
    model = tiny_model()
    result = fit(
        model, plan_of(model, HEADS), uncached, tiny_config("train.steps=1"), cache=cache_of(limit_bytes=1000)
    )
    assert result.step == 1 and not folders(tmp_path)
    said = capsys.readouterr().out
    assert "computed at every step: the features of 5 examples take" in said
    assert "raise train.cache_limit_gb" in said


@pytest.mark.usefixtures("eagerly")
def test_the_cache_longest_unused_makes_room(tiny_model, cache_of, tmp_path):
    model = tiny_model()
    plan = plan_of(model, HEADS)
    cache_of("first").open(model, plan, print)
    (first,) = folders(tmp_path)
    size = sum(path.stat().st_size for path in first.iterdir())
    (first / "cache.json").touch()
    cache_of("second", limit_bytes=2 * size).open(model, plan, print)
    assert first in folders(tmp_path) and len(folders(tmp_path)) == 2
    cache_of("first").open(model, plan, print)  # used again, so that the second is now the older one
    cache_of("third", limit_bytes=2 * size).open(model, plan, print)
    assert first in folders(tmp_path) and len(folders(tmp_path)) == 2


def test_a_stopped_computation_leaves_nothing(tiny_model, cache_of, tmp_path):
    model = tiny_model()
    with pytest.raises(CacheStopped):
        cache_of().open(model, plan_of(model, HEADS), print, is_stopped=lambda: True)
    assert not folders(tmp_path)


@pytest.mark.usefixtures("eagerly")
def test_what_a_killed_run_left_half_made_goes_and_what_a_living_one_makes_stays(
    tiny_model, cache_of, tmp_path
):
    model, noted = tiny_model(), []
    plan = plan_of(model, HEADS)
    cache_of().open(model, plan, print)
    (made,) = folders(tmp_path)
    size = sum(path.stat().st_size for path in made.iterdir())
    killed = tmp_path / "features" / ".partial-killed"
    killed.mkdir()
    (killed / "features.bin").write_bytes(bytes(2_000_000))
    with owned_folder(tmp_path / "features", ".partial-") as living:
        # Complete, and not yet at its place: the other's, also where room is needed.
        shutil.copytree(made, living / "features")
        cache_of("other", limit_bytes=size).open(model, plan, noted.append)
        assert (living / "features" / "cache.json").is_file()
        assert len(folders(tmp_path)) == 2 and made not in folders(tmp_path)
    assert noted[0] == f"deleted 2.0 MB in {tmp_path / 'features'}, which killed runs left half made"
    assert len(noted) == 2


def test_a_cache_that_is_complete_holds_no_more_than_its_values(tiny_model, cache_of, tmp_path):
    model = tiny_model()
    cache_of().open(model, plan_of(model, HEADS), print)
    (made,) = folders(tmp_path)
    assert {path.suffix for path in made.iterdir()} == {".bin", ".npy", ".json"}


def test_float16_takes_half_the_room(tiny_model, cache_of, tmp_path):
    model, seed = tiny_model(), tf.constant([0, 0])
    losses = []
    for storage in ("float32", "float16"):
        kept = cache_of(storage=storage).open(model, plan_of(model, HEADS), print)
        batch = next(iter(kept.batches(2)))
        assert batch["features"].dtype == tf.float32
        losses.append({name: float(loss) for name, loss in kept.named_losses(batch, seed).items()})
    small, large = sorted((folder / "features.bin").stat().st_size for folder in folders(tmp_path))
    assert large == 2 * small
    assert losses[1] == pytest.approx(losses[0], rel=1e-2) and losses[1] != losses[0]


def test_features_in_bfloat16_are_kept_as_they_are(tiny_config, cache_of, examples, tmp_path):
    model = build_model(tiny_config("model.precision=bfloat16").model, ("circle", "square", "star"))
    plan = plan_of(model, HEADS)
    plan.apply(model.components)
    batch = next(iter(cache_of().open(model, plan, print).batches(1)))
    expected = model.first_stage(examples[entry_at(0)]["image"]).features
    assert batch["features"].dtype == expected.dtype == tf.bfloat16
    np.testing.assert_allclose(
        tf.cast(batch["features"], tf.float32), tf.cast(expected, tf.float32), rtol=0.02, atol=0.02
    )


def test_canvases_may_differ_where_a_batch_has_one_example(tiny_model, cache_of, views, make_batch, tmp_path):
    model, seed = tiny_model(), tf.constant([0, 0])
    rows = [make_batch(entry, batch_size=1, side=64 + 16 * (entry % 2)) for entry in range(ENTRIES)]
    cache = FeatureCache(tmp_path, views("uneven", 1, rows), limit_bytes=10**9, model_config={})
    plan = plan_of(model, ["feature_extractor", "rpn"])
    plan.apply(model.components)
    kept = cache.open(model, plan, print)
    assert kept.sizes is None
    for step, batch in zip(range(4), kept.batches(1), strict=False):
        expected = model.named_losses(rows[entry_at(step)], seed)
        found = kept.named_losses(batch, seed)
        assert [float(v) for v in found.values()] == pytest.approx(
            [float(v) for v in expected.values()], rel=1e-5
        )


@pytest.mark.slow
def test_a_schedule_takes_every_stage_from_its_own_features(
    tiny_model, tiny_config, cache_of, uncached, tmp_path, views
):
    """The predictor alone, then both heads; cut off in the second stage and resumed."""
    config = tiny_config("train.steps=4", "train.checkpoint_every=1")
    stages = [FreezeStageConfig(from_step=2, unfreeze=("rpn", "box_classifier"))]

    def schedule_of(model):
        rows = rows_of(model.components, restored=model.variables_by_path)
        first = tiny_config().freeze.model_copy(update={"freeze": tuple(PREDICTOR_ONLY)})
        return resolve_schedule(rows, first, stages, batch_norm="update", steps=4)

    runs = {name: RunLog(tmp_path / name) for name in ("whole", "cut")}
    model = tiny_model()
    fit(model, schedule_of(model), uncached, config, cache=cache_of(), run=runs["whole"])

    cache = cache_of()
    open_cache = cache.open

    def open_for_three_steps(*arguments, **how):
        kept = open_cache(*arguments, **how)
        whole = kept.batches
        kept.batches = lambda batch_size, start_step: whole(batch_size, start_step).take(3 - start_step)
        return kept

    cache.open = open_for_three_steps
    model = tiny_model()
    with pytest.raises(ValueError, match="batches ended before step 3"):
        fit(model, schedule_of(model), uncached, config, cache=cache, run=runs["cut"])
    info = checkpoint.read_info(runs["cut"].last)
    assert info.step == 3
    model = tiny_model(seed=9)
    fit(model, schedule_of(model), uncached, config, cache=cache_of(), run=runs["cut"], resume_from=info)
    assert losses_of(runs["cut"]) == losses_of(runs["whole"])
    assert views.passes == 2  # the features behind the tower and those of the feature extractor, once each


def test_a_stop_request_while_features_are_computed_saves_the_run(
    tiny_model, tiny_config, cache_of, uncached, tmp_path, monkeypatch
):
    model, run = tiny_model(), RunLog(tmp_path / "run")

    def stopped(model, plan, note, is_stopped):
        assert not is_stopped()
        os.kill(os.getpid(), signal.SIGTERM)
        assert is_stopped()
        raise CacheStopped

    cache = cache_of()
    monkeypatch.setattr(cache, "open", stopped)
    with pytest.raises(Interrupted, match="stopped at step 0 of 3") as stop:
        fit(model, plan_of(model, HEADS), uncached, tiny_config(), cache=cache, run=run)
    assert stop.value.signal_number == signal.SIGTERM
    assert checkpoint.read_info(run.last).step == 0


def test_a_cache_needs_batches_from_any_step(tiny_model, tiny_config, cache_of, uncached):
    model = tiny_model()
    with pytest.raises(TypeError, match="expected a function from a step to batches, got generator"):
        fit(model, plan_of(model, HEADS), uncached(0), tiny_config(), cache=cache_of())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (['data.augment=[{"name": "HorizontalFlip"}]'], "set train.views"),
        (
            ['model.resizer={"kind": "keep_aspect_ratio"}'],
            "needs one canvas for all images: set model.resizer.pad",
        ),
    ],
)
def test_what_cannot_be_cached_is_refused(overrides, message, tiny_config):
    with pytest.raises(ConfigError, match=message):
        tiny_config("train.cache=features", *overrides)


def test_the_page_says_what_a_cache_was_made_of(tiny_model, cache_of, tmp_path):
    model = tiny_model()
    cache_of().open(model, plan_of(model, ["feature_extractor", "rpn"]), print)
    page = json.loads((folders(tmp_path)[0] / "cache.json").read_text())
    assert page["cut"][-1] == "rpn" and page["entries"] == ENTRIES
    assert page["fields"]["features"] == {"dtype": "float32", "stored": "float32"}
    assert set(page["variables"]) == {
        p for p in model.variables_by_path if not p.startswith("box_classifier")
    }
