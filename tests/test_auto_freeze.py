from dataclasses import replace

import numpy as np
import pytest
from conftest import CLASS_NAMES, values_of
from test_freeze_suggestion import EXAMPLE, STAGES

from detector import checkpoint
from detector.auto_freeze import auto_freeze, choose_freeze, is_auto
from detector.builder import build_model
from detector.checkpoint import CheckpointInfo
from detector.freeze_suggestion import suggest
from detector.selectors import FreezeError


def test_auto_is_replaced_by_what_the_restored_detector_suggests(tiny_config, tmp_path, monkeypatch):
    start = build_model(tiny_config().model, CLASS_NAMES, seed=9)
    info = CheckpointInfo(7, [{"id": i, "name": name} for i, name in enumerate(CLASS_NAMES, 1)], {})
    checkpoint.save(tmp_path / "start", info, start.variables_by_path)
    seen = {}

    def fake_diagnose(model, batches, *, restored):
        seen.update(values=values_of(model.variables_by_path), batches=batches, restored=set(restored))
        return EXAMPLE if restored else replace(EXAMPLE, stages=[replace(s, fresh=True) for s in STAGES])

    monkeypatch.setattr("detector.auto_freeze.diagnose", fake_diagnose)
    config = tiny_config(f"train.restore.path={tmp_path / 'start'}", "freeze.freeze=[auto]")
    chosen, why = choose_freeze(config, CLASS_NAMES, "the batches")
    assert why == suggest(EXAMPLE) and chosen.freeze.freeze == why.freeze
    assert chosen.model_copy(update={"freeze": config.freeze}) == config
    assert seen["batches"] == "the batches" and seen["restored"] == set(start.variables_by_path)
    for path, value in values_of(start.variables_by_path).items():
        np.testing.assert_array_equal(seen["values"][path], value)

    scratch, why = choose_freeze(tiny_config("freeze.freeze=[auto]"), CLASS_NAMES, "the batches")
    assert scratch.freeze.freeze == () and why.freeze == ("none",)
    assert auto_freeze(start, "the batches", restored=["rpn"]) == suggest(EXAMPLE)


def test_auto_stands_alone(tiny_config):
    assert is_auto(tiny_config("freeze.freeze=[auto]"))
    assert not is_auto(tiny_config()) and not is_auto(tiny_config("freeze.freeze=[rpn]"))
    with pytest.raises(FreezeError, match="'auto' stands alone, but came with 'rpn'"):
        is_auto(tiny_config("freeze.freeze=[auto, rpn]"))
