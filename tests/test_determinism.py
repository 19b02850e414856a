import re
from itertools import count
from pathlib import Path

import pytest
import tensorflow as tf

from detector.determinism import OFF, enable_determinism
from detector.freeze import resolve, rows_of
from detector.train import fit

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def switched_on(monkeypatch):
    """How often deterministic operations were switched on; they stay as they are."""
    calls = []
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: calls.append(1))
    return calls


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [f"{kind}:0"])


def test_on_a_cpu_deterministic_operations_are_switched_on(switched_on, monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    assert enable_determinism() is None and switched_on == [1]


def test_on_a_gpu_they_stay_off_and_it_is_said(switched_on, gpu):
    assert enable_determinism() == OFF and switched_on == []
    assert OFF.startswith("deterministic operations are off: on a GPU") and "not bit-identical" in OFF


def test_nothing_else_switches_them_on():
    found = [
        str(path.relative_to(ROOT))
        for folder in ("detector", "data", "tools")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"enable_op_determinism|TF_DETERMINISTIC_OPS", path.read_text())
    ]
    assert found == ["detector/determinism.py"]


@pytest.mark.usefixtures("eagerly", "gpu")
@pytest.mark.parametrize(("deterministic", "times"), [("true", 1), ("false", 0)])
def test_training_on_a_gpu_says_that_it_is_not_deterministic(
    deterministic, times, switched_on, tiny_model, tiny_config, make_batch, capsys
):
    model = tiny_model()
    rows = rows_of(model.components, restored=model.variables_by_path)
    config = tiny_config("train.steps=1", f"train.deterministic={deterministic}")
    plan = resolve(rows, ["all_but:box_classifier/predictor"])
    assert fit(model, plan, (make_batch(step) for step in count()), config).step == 1
    assert capsys.readouterr().out.count(OFF) == times and switched_on == []
