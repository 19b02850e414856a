import random

import numpy as np
import pytest
import tensorflow as tf
from conftest import values_of

from detector.builder import build_model

pytestmark = pytest.mark.usefixtures("rewritten_graphs")


def test_every_variable_lives_in_one_component_and_has_one_path(tiny_model):
    model = tiny_model()
    paths = model.variables_by_path
    assert len({id(variable) for variable in paths.values()}) == len(paths) == len(model.variables)
    assert {path.split("/")[0] for path in paths} == {"feature_extractor", "rpn", "box_classifier"}
    assert "feature_extractor/Mixed_3b/Branch_1/Conv2d_0b_3x3/kernel" in paths
    assert "box_classifier/tower/Mixed_5a/Branch_0/Conv2d_1a_3x3/BatchNorm/moving_mean" in paths
    assert {"box_classifier/predictor/class_scores/bias", "rpn/conv/kernel"} <= paths.keys()


def test_paths_do_not_depend_on_what_was_built_before(tiny_model):
    assert list(tiny_model().variables_by_path) == list(tiny_model().variables_by_path)


def test_weights_are_a_function_of_the_seed_and_leave_the_callers_random_numbers_alone(tiny_model):
    random.seed(4)
    np.random.seed(4)
    expected = [random.random(), np.random.random()]
    random.seed(4)
    np.random.seed(4)
    first, again, other = (values_of(tiny_model(seed=seed).variables_by_path) for seed in (1, 1, 2))
    assert all(np.array_equal(first[path], again[path]) for path in first)
    assert not np.array_equal(first["rpn/conv/kernel"], other["rpn/conv/kernel"])
    assert [random.random(), np.random.random()] == expected


def test_a_batch_detects_what_its_images_detect_alone(tiny_model, make_batch):
    model, batch = tiny_model(), make_batch(0, batch_size=3)
    together = model.detect(batch["image"], batch["image_size_hw"])
    assert together.boxes_yxyx.shape == (3, 20, 4)
    for row in range(3):
        alone = model.detect(batch["image"][row : row + 1], batch["image_size_hw"][row : row + 1])
        assert int(alone.count[0]) == int(together.count[row]) > 0
        np.testing.assert_allclose(alone.boxes_yxyx[0], together.boxes_yxyx[row], atol=0.05)
        np.testing.assert_allclose(alone.scores[0], together.scores[row], atol=1e-4)


def test_detections_stay_in_the_part_of_the_canvas_that_is_image(tiny_model, make_batch):
    model, batch = tiny_model(), make_batch(0)
    found = model.detect(batch["image"], tf.constant([[64, 64], [30, 40]]))
    assert float(tf.reduce_max(found.boxes_yxyx[0])) > 40
    assert np.all(found.boxes_yxyx[1].numpy() <= [30, 40, 30, 40])


def test_shapes_are_static_where_the_canvas_is(tiny_model):
    model = tiny_model()
    detect = tf.function(model.detect, autograph=False).get_concrete_function(
        tf.TensorSpec([2, 96, 64, 3], tf.uint8), tf.TensorSpec([2, 2], tf.int32)
    )
    assert detect.structured_outputs.boxes_yxyx.shape == (2, 20, 4)
    anchors = tf.function(lambda image: model.first_stage(image).anchors_yxyx, autograph=False)
    traced = anchors.get_concrete_function(tf.TensorSpec([2, 96, 64, 3], tf.uint8))
    assert traced.structured_outputs.shape == (6 * 4 * 6, 4)


def test_a_canvas_known_only_at_run_time_detects_the_same(tiny_model, make_batch):
    model, batch = tiny_model(), make_batch(0)
    at_run_time = tf.function(
        model.detect,
        input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8), tf.TensorSpec([None, 2], tf.int32)],
        autograph=False,
    )
    for key, tolerance in (("boxes_yxyx", 0.05), ("scores", 1e-4)):
        np.testing.assert_allclose(
            getattr(at_run_time(batch["image"], batch["image_size_hw"]), key),
            getattr(model.detect(batch["image"], batch["image_size_hw"]), key),
            atol=tolerance,
        )


def test_losses_are_a_function_of_the_seed(tiny_model, make_batch):
    model, batch = tiny_model(), make_batch(0)

    def losses(seed):
        return {k: float(v) for k, v in model.named_losses(batch, tf.constant(seed), training=False).items()}

    assert losses([0, 1]) == losses([0, 1])
    assert losses([0, 1]) != losses([0, 2])
    assert set(losses([0, 0])) == {"rpn_box", "rpn_objectness", "box", "class"}


def test_training_leaves_out_anchors_that_cross_the_edge(tiny_model, make_batch):
    model, image = tiny_model(), make_batch(0)["image"]
    training, inference = model.first_stage(image, training=True), model.first_stage(image)
    assert inference.is_usable is None
    assert float(tf.reduce_min(inference.anchors_yxyx)) == 0.0  # clipped
    usable = training.is_usable.numpy()
    assert 0 < usable.sum() < len(usable)
    assert np.all(training.anchors_yxyx.numpy()[usable] >= 0)


def test_loss_weights_weigh(tiny_model, tiny_config, make_batch):
    batch, seed = make_batch(0), tf.constant([0, 0])
    plain = tiny_model().named_losses(batch, seed, training=False)
    config = tiny_config("model.rpn.box_loss_weight=6", "model.box_classifier.class_loss_weight=0")
    weighted = build_model(config.model, ("circle", "square", "star")).named_losses(
        batch, seed, training=False
    )
    assert float(weighted["rpn_box"]) == pytest.approx(3 * float(plain["rpn_box"]), rel=1e-5)
    assert float(weighted["class"]) == 0.0
    assert float(weighted["box"]) == pytest.approx(float(plain["box"]), rel=1e-5)


@pytest.mark.parametrize("names", [(), ("cat", "cat")])
def test_class_names_must_be_there_and_differ(names, tiny_config):
    with pytest.raises(ValueError, match="class names must be there and differ"):
        build_model(tiny_config().model, names)


def test_the_number_of_classes_is_checked_against_the_data(tiny_config):
    with pytest.raises(ValueError, match=r"num_classes is 4, but the data has 2 classes: cat, dog"):
        build_model(tiny_config("model.num_classes=4").model, ("cat", "dog"))
