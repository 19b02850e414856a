"""Evaluation on kept features finds the same, and leaves their room to training in between."""

import numpy as np
import pytest
from conftest import CLASS_NAMES
from five_examples import HEADS, PREDICTOR_ONLY, plan_of

from detector.evaluate import Evaluator
from detector.owned_folder import bytes_in

pytestmark = [
    pytest.mark.usefixtures("rewritten_graphs"),
    # TensorFlow's notice that data sets are not run eagerly.
    pytest.mark.filterwarnings("ignore:Even though the:UserWarning"),
]


@pytest.fixture
def evaluator_of(five):
    """Return a function that makes an evaluator of the five examples, by default with a cache."""
    truth = {
        "images": [{"id": int(row["image_id"][0]), "height": 64, "width": 64} for row in five.rows],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASS_NAMES)],
        "annotations": [],
    }

    def make(model, is_cached=True, limit_bytes=10**9, **how):
        views = five.views("evaluation", entry_at=None)
        cache = five.cache(views, limit_bytes=limit_bytes) if is_cached else None
        return Evaluator(model, list(views.batches()), truth, cache=cache, cache_batch_size=2, **how)

    return make


@pytest.mark.parametrize("freeze", [HEADS, PREDICTOR_ONLY])
def test_detections_are_those_without_the_cache(tiny_model, evaluator_of, five, freeze, request):
    if freeze == HEADS:
        request.getfixturevalue("eagerly")  # the other is traced
    model, told = tiny_model(), []
    plan = plan_of(model, freeze)
    with_cache, without = evaluator_of(model, note=told.append), evaluator_of(model, is_cached=False)
    passes = five.passes
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
    assert five.passes == passes + 1
    assert len(told) == 1
    assert told[0].startswith("evaluation: features after")


@pytest.mark.usefixtures("eagerly")
def test_features_of_what_moved_after_all_are_not_detected_on(tiny_model, evaluator_of, five):
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
    assert len(five.caches()) == 2


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
def test_where_both_do_not_fit_training_keeps_its_features(tiny_model, evaluator_of, five):
    model, told = tiny_model(), []
    plan = plan_of(model, HEADS)
    five.cache().open(model, plan, print)
    (trained_from,) = five.caches()
    limit = bytes_in(trained_from) + 1000
    evaluator = evaluator_of(model, limit_bytes=limit, note=told.append)
    evaluator(plan)
    assert len(five.caches()) == 1 and not trained_from.exists()  # nobody was training
    # Between evaluations theirs makes room.
    kept = five.cache(limit_bytes=limit).open(model, plan, print)
    assert five.caches() == [trained_from]
    evaluator(plan)
    assert five.caches() == [trained_from]
    assert len(told) == 2 and "computed once" in told[0]
    assert told[1].startswith("evaluation: features after") and "are in use" in told[1]
    next(iter(kept.batches(2)))


@pytest.mark.usefixtures("eagerly")
def test_an_evaluation_after_one_that_was_cut_off_detects_all_the_same(tiny_model, evaluator_of, monkeypatch):
    model = tiny_model()
    plan, evaluator = plan_of(model, HEADS), evaluator_of(model)

    def cut_off(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("detector.evaluate.detect_all", cut_off)
        evaluator(plan)
    evaluator(plan)
    assert len(evaluator.detections) > 0
