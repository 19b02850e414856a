import math

import pytest

from detector.schedule import learning_rate_schedule
from detector.train_config import LearningRateConfig


def test_cosine_after_a_linear_warmup():
    rate = learning_rate_schedule(
        LearningRateConfig(schedule="cosine", base=0.4, warmup_steps=10, warmup_start=0.1), steps=110
    )
    assert rate(0) == pytest.approx(0.1)
    assert rate(5) == pytest.approx(0.25)
    assert rate(10) == pytest.approx(0.4)
    assert rate(60) == pytest.approx(0.2)
    assert rate(35) == pytest.approx(0.2 * (1 + math.cos(math.pi / 4)))
    assert rate(110) == pytest.approx(0.0)
    assert rate(500) == pytest.approx(0.0)


def test_the_cosine_can_outlast_the_run():
    rate = learning_rate_schedule(LearningRateConfig(schedule="cosine", base=1.0, total_steps=200), steps=100)
    assert rate(100) == pytest.approx(0.5)


def test_steps_start_at_their_boundaries():
    rate = learning_rate_schedule(
        LearningRateConfig(schedule="step", base=1.0, boundaries=(10, 20), values=(0.1, 0.01)), steps=30
    )
    assert [rate(step) for step in (0, 9, 10, 19, 20, 29)] == [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]


def test_constant():
    rate = learning_rate_schedule(LearningRateConfig(schedule="constant", base=0.3), steps=10)
    assert rate(0) == rate(9) == 0.3


def test_a_warmup_as_long_as_the_cosine_is_refused():
    with pytest.raises(ValueError, match="warmup_steps 100 leave nothing of the cosine's 100 steps"):
        learning_rate_schedule(LearningRateConfig(schedule="cosine", warmup_steps=100), steps=100)
