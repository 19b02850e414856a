"""Training from kept features is training: the same losses, wherever the cut is."""

import os
import signal

import numpy as np
import pytest
import tensorflow as tf
from five_examples import ENTRIES, HEADS, PREDICTOR_ONLY, STAGES, entry_at, plan_of

from detector import checkpoint
from detector.config import ConfigError
from detector.feature_cache import CacheStopped
from detector.freeze import rows_of
from detector.freeze_config import FreezeStageConfig
from detector.freeze_schedule import resolve_schedule
from detector.held_file import take_alone
from detector.owned_folder import bytes_in
from detector.run_log import RunLog
from detector.train import fit
from detector.training_loop import Interrupted

pytestmark = [
    pytest.mark.usefixtures("rewritten_graphs"),
    # TensorFlow's notice that data sets are not run eagerly.
    pytest.mark.filterwarnings("ignore:Even though the:UserWarning"),
]


def losses_of(run):
    names = ("rpn_box", "rpn_objectness", "box", "class", "gradient_norm")
    return [[row[name] for name in names] for row in run.read_metrics()]


@pytest.mark.parametrize("freeze", [STAGES, HEADS, PREDICTOR_ONLY])
def test_the_losses_are_those_without_the_cache(freeze, tiny_model, tiny_config, five, tmp_path, request):
    if freeze != HEADS:
        request.getfixturevalue("eagerly")  # one traces its steps
    config = tiny_config("train.steps=1" if freeze == STAGES else "train.steps=2")
    runs = []
    for name, cache in (("with", five.cache()), ("without", None)):
        model, run = tiny_model(), RunLog(tmp_path / name)
        result = fit(model, plan_of(model, freeze), five.uncached, config, cache=cache, run=run)
        assert result.proof.holds
        runs.append(losses_of(run))
    np.testing.assert_allclose(runs[0][0], runs[1][0], rtol=1e-5)
    # At the second step the weights differ by the rounding of the first.
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-3)
    (made,) = five.caches()
    with take_alone(made / "cache.json"):
        pass  # nobody uses it any more


@pytest.mark.usefixtures("eagerly")
def test_canvases_may_differ_where_a_batch_has_one_example(tiny_model, five, make_batch):
    model, seed = tiny_model(), tf.constant([0, 0])
    rows = [make_batch(entry, batch_size=1, side=64 + 16 * (entry % 2)) for entry in range(ENTRIES)]
    plan = plan_of(model, ["feature_extractor", "rpn"])
    plan.apply(model.components)
    kept = five.cache(five.views("uneven", 1, rows)).open(model, plan, print)
    assert kept.sizes is None
    for step, batch in zip(range(2), kept.batches(1), strict=False):
        expected = model.named_losses(rows[entry_at(step)], seed)
        found = kept.named_losses(batch, seed)
        assert [float(v) for v in found.values()] == pytest.approx(
            [float(v) for v in expected.values()], rel=1e-5
        )


@pytest.mark.usefixtures("eagerly")
def test_features_without_room_are_computed_at_every_step(tiny_model, tiny_config, five, capsys):
    model, config = tiny_model(), tiny_config("train.steps=1")
    cache = five.cache(limit_bytes=1000)
    assert fit(model, plan_of(model, HEADS), five.uncached, config, cache=cache).step == 1
    assert not five.caches()
    said = capsys.readouterr().out
    assert "features after feature_extractor/Mixed_4e are computed at every step: they take" in said
    assert "raise train.cache_limit_gb" in said


def schedule_of(model, config, steps):
    """The predictor alone, then both heads from half of the steps on."""
    rows = rows_of(model.components, restored=model.variables_by_path)
    first = config.freeze.model_copy(update={"freeze": tuple(PREDICTOR_ONLY)})
    stages = [FreezeStageConfig(from_step=steps // 2, unfreeze=("rpn", "box_classifier"))]
    return resolve_schedule(rows, first, stages, batch_norm="update", steps=steps)


@pytest.mark.usefixtures("eagerly")
def test_a_freeze_stage_leaves_the_room_of_its_features_to_the_next(tiny_model, tiny_config, five):
    model = tiny_model()
    five.cache().open(model, plan_of(model, PREDICTOR_ONLY), print)
    (first,) = five.caches()
    config = tiny_config("train.steps=2")
    cache = five.cache(limit_bytes=bytes_in(first) + 1000)
    fit(model, schedule_of(model, config, steps=2), five.uncached, config, cache=cache)
    (second,) = five.caches()
    assert second != first and five.passes == 2


@pytest.mark.slow
def test_a_schedule_takes_every_stage_from_its_own_features(tiny_model, tiny_config, five, tmp_path):
    """The predictor alone, then both heads; cut off in the second stage and resumed."""
    config = tiny_config("train.steps=4", "train.checkpoint_every=1")
    runs = {name: RunLog(tmp_path / name) for name in ("whole", "cut")}
    model = tiny_model()
    schedule = schedule_of(model, config, steps=4)
    fit(model, schedule, five.uncached, config, cache=five.cache(), run=runs["whole"])

    cache = five.cache()
    open_cache = cache.open

    def open_for_three_steps(*arguments, **how):
        kept = open_cache(*arguments, **how)
        whole = kept.batches
        kept.batches = lambda batch_size, start_step: whole(batch_size, start_step).take(3 - start_step)
        return kept

    cache.open = open_for_three_steps
    model = tiny_model()
    with pytest.raises(ValueError, match="batches ended before step 3"):
        fit(model, schedule_of(model, config, steps=4), five.uncached, config, cache=cache, run=runs["cut"])
    info = checkpoint.read_info(runs["cut"].last)
    assert info.step == 3
    model = tiny_model(seed=9)
    schedule = schedule_of(model, config, steps=4)
    fit(model, schedule, five.uncached, config, cache=five.cache(), run=runs["cut"], resume_from=info)
    assert losses_of(runs["cut"]) == losses_of(runs["whole"])
    assert five.passes == 2  # the features behind the tower and those of the feature extractor, once each


def test_a_stop_request_while_features_are_computed_saves_the_run(
    tiny_model, tiny_config, five, tmp_path, monkeypatch
):
    model, run = tiny_model(), RunLog(tmp_path / "run")

    def stopped(model, plan, note, is_stopped):
        assert not is_stopped()
        os.kill(os.getpid(), signal.SIGTERM)
        assert is_stopped()
        raise CacheStopped

    cache = five.cache()
    monkeypatch.setattr(cache, "open", stopped)
    with pytest.raises(Interrupted, match="stopped at step 0 of 3") as stop:
        fit(model, plan_of(model, HEADS), five.uncached, tiny_config(), cache=cache, run=run)
    assert stop.value.signal_number == signal.SIGTERM
    assert checkpoint.read_info(run.last).step == 0


def test_a_cache_needs_batches_from_any_step(tiny_model, tiny_config, five):
    model = tiny_model()
    with pytest.raises(TypeError, match="expected a function from a step to batches, got generator"):
        fit(model, plan_of(model, HEADS), five.uncached(0), tiny_config(), cache=five.cache())


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
