import dataclasses
from pathlib import Path

import pytest

from detector.checkpoint import CheckpointError, CheckpointInfo
from detector.progression import Progression


def page(**training):
    return CheckpointInfo(step=4, categories=[], model={}, training=training)


def test_a_page_gives_back_where_the_run_stood():
    at = Progression(step=4, best_ap=0.5, best_step=2, evaluations_since_best=1, evaluated_step=2, stage=0)
    assert Progression.of(page(**dataclasses.asdict(at)), Path("last")) == at


def test_versions_without_evaluated_step_owe_no_evaluation():
    assert Progression.of(page(step=4, stage=0), Path("last")).evaluated_step == 4


def test_another_versions_page_is_named():
    with pytest.raises(CheckpointError, match=r"last/checkpoint.json: its `training`.*got step, weather"):
        Progression.of(page(step=4, weather="fine"), Path("last"))


def test_an_evaluation_counts_from_the_first_step_on():
    at = Progression(stage=0).scored(0.9)
    assert (at.evaluated_step, at.best_step) == (0, None)
    at = dataclasses.replace(at, step=2).scored(None)
    assert (at.evaluated_step, at.best_step, at.best_ap, at.evaluations_since_best) == (2, 2, 0.0, 0)
    at = dataclasses.replace(at, step=3).scored(0.0)
    assert (at.evaluated_step, at.best_step, at.evaluations_since_best) == (3, 2, 1)
