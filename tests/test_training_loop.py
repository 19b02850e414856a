"""A run's loop: resumption, stops, evaluations, patience, and what its steps are given."""

import itertools
import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from conftest import values_of
from training_examples import batches, changed_paths, cheap_plan_of, plan_of

from detector import checkpoint
from detector.coco_metrics import CocoScores
from detector.freeze_proof import FreezeProofError
from detector.freeze_schedule import FreezeSchedule, FreezeStage
from detector.run_log import RunLog
from detector.stop_requests import Stopped
from detector.train import fit
from detector.training_loop import Interrupted, NonFiniteLossError


def scores_with(ap):
    numbers = {name: None for name in CocoScores.__dataclass_fields__}
    return CocoScores(**{**numbers, "AP": ap, "AP_per_class": {}, "AP50_per_class": {}})


@pytest.fixture
def fake(monkeypatch):
    """Replace training steps by some that move what trains by its learning rate.

    Returns `steps`, the (seed, step, learning rate) taken, and `settings`, what they were made with.
    """
    record = SimpleNamespace(steps=[], settings=[])

    def make(model, trained, optimizer, **settings):
        record.settings.append(settings)

        def step(batch, seed, learning_rate):
            record.steps.append((*seed.numpy().tolist(), float(learning_rate)))
            optimizer.apply({path: tf.ones_like(each) for path, each in trained.items()}, learning_rate)
            return {"loss": tf.constant(0.5)}

        return step

    monkeypatch.setattr("detector.training_loop.make_step", make)
    return record


@pytest.mark.slow  # tests/test_train_tool.py kills a run and resumes it
def test_a_resumed_run_ends_with_the_same_bits(tiny_model, tiny_config, make_batch, tmp_path):
    config = tiny_config(
        "train.steps=5",
        "train.checkpoint_every=2",
        "train.optimizer.kind=adamw",
        "train.learning_rate.base=0.01",
    )
    whole = tiny_model()
    plan = plan_of(whole, ["rpn"])
    fit(whole, plan, batches(make_batch), config, run=RunLog(tmp_path / "whole"))

    cut = tiny_model()
    with pytest.raises(ValueError, match="batches ended before step 3"):
        fit(cut, plan, itertools.islice(batches(make_batch), 3), config, run=RunLog(tmp_path / "cut"))
    resumed = tiny_model(seed=5)  # other weights, all of which the checkpoint must replace
    run = RunLog(tmp_path / "cut")
    info = checkpoint.read_info(run.last)
    assert info.step == 2
    fit(resumed, plan, batches(make_batch, start=2), config, run=run, resume_from=info)

    assert not changed_paths(values_of(whole.variables_by_path), values_of(resumed.variables_by_path))
    assert [row["step"] for row in run.read_metrics()] == [1, 2, 3, 4, 5]
    assert [row["loss"] for row in run.read_metrics()] == [
        row["loss"] for row in RunLog(tmp_path / "whole").read_metrics()
    ]


@pytest.mark.usefixtures("eagerly")
def test_a_stop_request_saves_and_says_where(tiny_model, tiny_config, make_batch, tmp_path):
    def with_signal():
        for step in itertools.count():
            if step == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield make_batch(step)

    model, run = tiny_model(), RunLog(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="stopped at step 2 of 9"):
        fit(
            model,
            cheap_plan_of(model),
            with_signal(),
            tiny_config("train.steps=9", "train.checkpoint_every=100"),
            run=run,
        )
    assert checkpoint.read_info(run.last).step == 2
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.usefixtures("eagerly")
def test_a_loss_that_is_not_finite_stops_the_run_with_its_step_losses_and_images(
    tiny_model, tiny_config, make_batch, tmp_path
):
    def poisoned():
        yield from (make_batch(step) for step in range(2))
        batch = make_batch(2)
        yield {**batch, "image": tf.fill(batch["image"].shape, float("nan"))}

    model, run = tiny_model(), RunLog(tmp_path)
    # uint8 and float images are two traces of the same step.
    with pytest.raises(NonFiniteLossError, match=r"step 2: a loss is not finite \(rpn_box .*images \[4, 5\]"):
        fit(model, cheap_plan_of(model), poisoned(), tiny_config(), run=run)
    assert checkpoint.read_info(run.last).step == 2


@pytest.mark.usefixtures("eagerly")
def test_a_frozen_variable_that_moved_fails_the_run(tiny_model, tiny_config, make_batch, tmp_path):
    model, run = tiny_model(), RunLog(tmp_path)

    def meddling():
        yield make_batch(0)
        model.rpn.conv.bias.assign_add(tf.ones_like(model.rpn.conv.bias) * 1e-6)
        yield from batches(make_batch, start=1)

    with pytest.raises(FreezeProofError, match="rpn/conv/bias"):
        fit(model, plan_of(model, ["rpn"]), meddling(), tiny_config(), run=run)
    written = json.loads((tmp_path / "freeze_proof.json").read_text())
    assert not written["holds"] and written["stages"][0]["moved"] == ["rpn/conv/bias"]


@pytest.mark.usefixtures("eagerly")
def test_the_best_checkpoint_is_kept_and_patience_ends_the_run(tiny_model, tiny_config, make_batch, tmp_path):
    aps = iter([0.1, 0.3, 0.2, 0.2, 0.9])
    config = tiny_config(
        "train.steps=9",
        "train.evaluate_every=1",
        "train.evaluate_at_start=false",
        "train.patience=2",
        "train.keep_checkpoints=1",
        "train.checkpoint_every=1",
    )
    model, run = tiny_model(), RunLog(tmp_path)
    result = fit(
        model,
        cheap_plan_of(model),
        batches(make_batch),
        config,
        run=run,
        evaluate=lambda plan, is_stopped: scores_with(next(aps)),
    )
    assert result.stopped_early and result.step == 4
    assert run.best.name == "step-000002" and run.last.name == "step-000004"
    assert {path.name for path in run.checkpoints.glob("step-*")} == {"step-000002", "step-000004"}


@pytest.mark.usefixtures("eagerly")
def test_a_run_that_patience_ended_stays_ended(tiny_model, tiny_config, make_batch, tmp_path):
    config = tiny_config(
        "train.steps=9", "train.evaluate_every=1", "train.evaluate_at_start=false", "train.patience=2"
    )
    model, run = tiny_model(), RunLog(tmp_path)

    def go_on(aps, resume_from=None):
        return fit(
            model,
            cheap_plan_of(model),
            batches(make_batch, start=resume_from.step if resume_from else 0),
            config,
            run=run,
            evaluate=lambda plan, is_stopped: scores_with(next(aps)),
            resume_from=resume_from,
        )

    assert go_on(iter([0.3, 0.2, 0.2])).step == 3
    again = go_on(iter([]), checkpoint.read_info(run.last))
    assert again.stopped_early and again.step == 3 and run.last.name == "step-000003"


@pytest.mark.usefixtures("fake")
def test_patience_counts_in_the_last_freeze_stage_and_the_end_is_told(
    tiny_model, tiny_config, make_batch, capsys
):
    model = tiny_model()
    stages = [FreezeStage(0, cheap_plan_of(model)), FreezeStage(3, plan_of(model, ["rpn"]))]
    config = tiny_config(
        "train.steps=9", "train.evaluate_every=1", "train.evaluate_at_start=false", "train.patience=2"
    )
    # Two evaluations without a better AP neither end the first stage nor count in the second.
    aps = iter([0.5, 0.4, 0.4, 0.3, 0.3])
    result = fit(
        model,
        FreezeSchedule(tuple(stages)),
        batches(make_batch),
        config,
        evaluate=lambda plan, is_stopped: scores_with(next(aps)),
    )
    assert result.stopped_early and result.step == 5
    assert "stopped early at step 5: 2 evaluations without a better AP\n" in capsys.readouterr().out


@pytest.mark.usefixtures("fake")
def test_a_run_that_patience_ends_at_its_last_step_did_not_stop_early(
    tiny_model, tiny_config, make_batch, capsys
):
    model, aps = tiny_model(), iter([0.5, 0.4])
    config = tiny_config(
        "train.steps=2", "train.evaluate_every=1", "train.evaluate_at_start=false", "train.patience=1"
    )
    result = fit(
        model,
        cheap_plan_of(model),
        batches(make_batch),
        config,
        evaluate=lambda plan, is_stopped: scores_with(next(aps)),
    )
    assert not result.stopped_early and result.step == 2
    assert "stopped early" not in capsys.readouterr().out


def test_a_run_that_is_cut_off_in_an_evaluation_makes_it_when_it_is_resumed(
    fake, tiny_model, tiny_config, make_batch, tmp_path, monkeypatch
):
    aps = {0: 0.9, 2: 0.3, 4: 0.2, 6: 0.4}
    config = tiny_config(
        "train.steps=6", "train.evaluate_every=2", "train.checkpoint_every=100", "train.patience=2"
    )
    model = tiny_model()
    plan, new = cheap_plan_of(model), values_of(model.variables_by_path)

    def evaluate(plan, is_stopped):
        assert not is_stopped()
        return scores_with(aps[len(fake.steps)])

    def kill(*arguments):
        raise MemoryError

    def killed(plan, is_stopped):
        return evaluate(plan, is_stopped) if len(fake.steps) < cut_at else kill()

    def killed_as_it_ends(plan, is_stopped):
        if len(fake.steps) == cut_at:
            patch.setattr(checkpoint, "replace_page", kill)
        return evaluate(plan, is_stopped)

    def stopped(plan, is_stopped):
        if len(fake.steps) < cut_at:
            return evaluate(plan, is_stopped)
        os.kill(os.getpid(), signal.SIGTERM)
        assert is_stopped()
        raise Stopped

    def begin(name, evaluate):
        fake.steps.clear()
        for path in plan.trained:
            model.variables_by_path[path].assign(new[path])
        run = RunLog(tmp_path / name)
        fit(model, plan, batches(make_batch), config, run=run, evaluate=evaluate)

    def outcome(name):
        run = RunLog(tmp_path / name)
        info = checkpoint.read_info(run.last)
        rows = [(row["step"], row.get("loss"), row.get("evaluation/AP")) for row in run.read_metrics()]
        return info.training, info.digests, rows, run.best.name, run.last.name

    begin("whole", evaluate)
    assert outcome("whole")[3:] == ("step-000006", "step-000006")
    for cut_at, cut_off in ((0, stopped), (2, killed), (2, killed_as_it_ends), (4, stopped), (6, killed)):
        name = f"{cut_off.__name__} at {cut_at}"
        with monkeypatch.context() as patch, pytest.raises((Interrupted, MemoryError)) as error:
            begin(name, cut_off)
        if cut_off is stopped:
            assert str(error.value) == f"stopped at step {cut_at} of 6, before its evaluation"
        run = RunLog(tmp_path / name)
        info = checkpoint.read_info(run.last)
        assert info.step == cut_at and info.training["evaluated_step"] == (cut_at - 2 if cut_at else None)
        source = batches(make_batch, cut_at)
        result = fit(model, plan, source, config, run=run, evaluate=evaluate, resume_from=info)
        assert result.scores.keys() == {step for step in aps if step >= cut_at}
        assert outcome(name) == outcome("whole"), name


@pytest.mark.usefixtures("fake")
def test_what_was_scored_is_in_the_page_of_the_best_checkpoint(
    tiny_model, tiny_config, make_batch, tmp_path, monkeypatch
):
    model, run = tiny_model(), RunLog(tmp_path)
    saved = []
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda path, *rest: saved.append(path.name) or save(path, *rest))
    aps = iter([0.1, 0.3, 0.2])
    fit(
        model,
        cheap_plan_of(model),
        batches(make_batch),
        tiny_config("train.evaluate_every=1", "train.evaluate_at_start=false"),
        run=run,
        evaluate=lambda plan, is_stopped: scores_with(next(aps)),
    )
    assert saved == ["step-000001", "step-000002", "step-000003"]  # and not twice
    best, last = (checkpoint.read_info(path).training for path in (run.best, run.last))
    assert (best["step"], best["best_step"], best["best_ap"], best["evaluated_step"]) == (2, 2, 0.3, 2)
    assert (last["step"], last["best_step"], last["evaluations_since_best"]) == (3, 2, 1)
    checkpoint.restore(run.best, tiny_model().variables_by_path)


def test_every_step_gets_the_seed_and_the_rate_of_its_stage(
    fake, tiny_model, tiny_config, make_batch, tmp_path
):
    model, run = tiny_model(), RunLog(tmp_path)
    before = values_of(model.variables_by_path)
    first, second = cheap_plan_of(model), plan_of(model, ["feature_extractor", "box_classifier"])
    schedule = FreezeSchedule((FreezeStage(0, first), FreezeStage(2, second, lr_factor=0.5, warmup_steps=2)))
    config = tiny_config(
        "train.steps=5",
        "train.seed=7",
        "train.clip_norm=3",
        "train.optimizer.momentum=0",
        "train.learning_rate={schedule: step, base: 0.4, boundaries: [1, 3], values: [0.2, 0.1]}",
        "train.lr_factors={box_classifier/predictor/class_scores: 2}",
        "model.rpn.l2=0.25",
        "model.box_classifier.l2=0.125",
    )
    fit(model, schedule, batches(make_batch), config, run=run)
    assert [step[:2] for step in fake.steps] == [(7, 0), (7, 1), (7, 2), (7, 3), (7, 4)]
    # From step 2 on half the rate, which is reached over two steps.
    assert [step[2] for step in fake.steps] == pytest.approx([0.4, 0.2, 0.0, 0.1 * 0.25, 0.1 * 0.5])
    after = values_of(model.variables_by_path)
    moved = {path: before[path] - after[path] for path in before}
    predictor = "box_classifier/predictor"
    np.testing.assert_allclose(moved[f"{predictor}/class_scores/bias"], 2 * (0.4 + 0.2), rtol=1e-5)
    np.testing.assert_allclose(moved[f"{predictor}/box_refinement/bias"], 0.4 + 0.2, rtol=1e-5)
    np.testing.assert_allclose(moved["rpn/conv/bias"], 0.025 + 0.05, rtol=1e-5)
    weights = {"rpn": 0.25, "box_classifier/predictor": 0.125}
    assert fake.settings == [{"clip_norm": 3.0, "l2": weights, "named_losses": None}] * 2
    # A slot for whatever any stage trains, a count for what always moves alike, and nothing else.
    kept = {key for key in checkpoint.read_info(run.last).digests if key.startswith("optimizer/")}
    slots = {f"optimizer/momentum/{path}" for path in (*first.trained, *second.trained)}
    assert kept == slots | {f"optimizer/iterations/{group}" for group in range(3)}


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("is_asked_for", [True, False])
def test_deterministic_operations_are_switched_on_where_they_are_asked_for(
    is_asked_for, tiny_model, tiny_config, make_batch, monkeypatch
):
    switched = []
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: switched.append("on"))
    model, config = tiny_model(), tiny_config("train.steps=1", f"train.deterministic={is_asked_for}")
    fit(model, cheap_plan_of(model), batches(make_batch), config)
    assert switched == ["on"] * is_asked_for


@pytest.mark.usefixtures("fake")
def test_a_frozen_variable_that_changed_between_two_parts_of_a_run_fails_it(
    tiny_model, tiny_config, make_batch, tmp_path
):
    model, run = tiny_model(), RunLog(tmp_path)
    plan = plan_of(model, ["rpn"])
    with pytest.raises(ValueError, match="batches ended before step 2"):
        fit(model, plan, itertools.islice(batches(make_batch), 2), tiny_config(), run=run)
    info = checkpoint.read_info(run.last)
    values = checkpoint.read_values(run.last, info)
    values["rpn/conv/bias"] += 1e-6
    checkpoint.save(run.last, info, {key: tf.Variable(value) for key, value in values.items()})
    with pytest.raises(FreezeProofError, match=r"1 of \d+ frozen variables moved by step 3: rpn/conv/bias"):
        fit(tiny_model(), plan, batches(make_batch, 2), tiny_config(), run=run, resume_from=info)


def test_patience_without_evaluations_is_refused(tiny_model, tiny_config, make_batch):
    config = tiny_config("train.patience=2", "train.evaluate_every=1")
    with pytest.raises(ValueError, match=r"train.patience 2 counts evaluations .* set train.evaluate_every"):
        fit(tiny_model(), plan_of(tiny_model()), batches(make_batch), config)
