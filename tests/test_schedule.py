import math

import pytest

from detector.schedule import learning_rate_schedule, other_end
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


def test_whether_a_schedule_and_a_run_end_together_is_told():
    def told(steps, **settings):
        return other_end(LearningRateConfig(base=1.0, **settings), steps)

    together = "train.learning_rate.total_steps=null ends it with the run"
    assert told(2000) is None and told(2000, total_steps=2000, warmup_steps=100) is None
    assert told(100, total_steps=200) == (
        f"its cosine ends at step 200, and the run at 100, with a rate of 0.508: {together}"
    )
    assert told(25000, total_steps=2000) == (
        f"its cosine is 0 from step 2,000 on, and the run goes on to 25,000: {together}"
    )
    assert told(1000, total_steps=25000, warmup_steps=2000) == (
        "its warmup takes 2,000 steps, and the run ends at 1,000, with a rate of 0.499"
    )
    stairs = {"schedule": "step", "boundaries": (10, 900, 2000), "values": (0.5, 0.2, 0.1)}
    assert told(2001, **stairs) is None
    assert told(900, **stairs) == (
        "2 of its 3 steps come after the run's end at 900, the first at 900; the run ends with a rate of 0.5"
    )
    assert told(5, schedule="constant") is None
