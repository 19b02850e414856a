import numpy as np
import pytest
import tensorflow as tf

from detector.box_classifier import (
    BoxPredictions,
    Predictor,
    box_classifier_losses,
    crop_features,
    detections,
    draw_proposals,
)
from detector.rpn import Proposals
from detector.sampling import GroundTruth


def truth(rows, classes, crowd=None):
    return GroundTruth.of(
        {
            "boxes_yxyx": tf.constant([rows], tf.float32),
            "classes": tf.constant([classes]),
            "is_crowd": tf.constant([crowd or [False] * len(rows)]),
        }
    )


def proposals(rows, count):
    return Proposals(tf.constant([rows], tf.float32), tf.ones([1, len(rows)]), tf.constant([count]))


def test_cropping_a_ramp_gives_the_ramp_inside_each_box():
    # Cell (y, x) holds (y, x).  A box in canvas pixels covers that part of 0 … cells - 1, ends included.
    ramp = tf.stack(tf.meshgrid(tf.range(9.0), tf.range(5.0), indexing="ij"), axis=-1)[tf.newaxis]
    boxes = tf.constant([[[0.0, 0, 90, 50], [22.5, 10, 67.5, 40]]])
    crops = crop_features(ramp, boxes, tf.constant([90.0, 50.0]), 3)
    np.testing.assert_allclose(crops[0, :, 0, 0], [0, 4, 8])
    np.testing.assert_allclose(crops[0, 0, :, 1], [0, 2, 4])
    np.testing.assert_allclose(crops[1, :, 1, 0], [2, 4, 6])
    np.testing.assert_allclose(crops[1, 1, :, 1], [0.8, 2, 3.2], rtol=1e-6)


def test_crops_come_from_their_own_image():
    features = tf.stack([tf.fill([4, 4, 1], float(image)) for image in range(3)])
    crops = crop_features(features, tf.tile([[[0.0, 0, 8, 8]]], [3, 2, 1]), tf.constant([8.0, 8.0]), 2)
    np.testing.assert_array_equal(crops[:, 0, 0, 0], [0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("per_image", [1, 16, 35, 64])  # with two images up to four groups, whole and broken
def test_crops_that_are_not_kept_are_the_crops_at_once_and_so_are_their_gradients(per_image, training):
    rng = np.random.default_rng(0)
    features = tf.constant(rng.normal(size=[2, 8, 8, 5]), tf.float32)
    low = rng.uniform(0, 80, [2, per_image, 2])
    boxes = tf.constant(np.concatenate([low, low + rng.uniform(1, 48, low.shape)], axis=-1), tf.float32)
    canvas = tf.constant([128.0, 128.0])

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 5]), tf.TensorSpec([None, per_image, 4])])
    def not_kept(features, boxes):
        crops = crop_features(
            features, boxes, canvas, crop_size=14, pool_size=3, pool_stride=2, training=training
        )
        assert crops.shape.as_list() == [None, 6, 6, 5]
        return crops, tf.gradients(tf.reduce_sum(crops**2), features)[0]

    with tf.GradientTape() as tape:
        tape.watch(features)
        image_of_box = tf.repeat([0, 1], per_image)
        crops = tf.image.crop_and_resize(features, tf.reshape(boxes / 128, [-1, 4]), image_of_box, [14, 14])
        expected = tf.nn.max_pool2d(crops, 3, 2, "VALID")
        total = tf.reduce_sum(expected**2)
    crops, gradient = not_kept(features, boxes)
    np.testing.assert_array_equal(crops, expected)
    np.testing.assert_allclose(gradient, tape.gradient(total, features), rtol=1e-4, atol=1e-4)


def test_training_crops_again_once_the_gradient_is_due():
    @tf.function(input_signature=[tf.TensorSpec([1, 8, 8, 5]), tf.TensorSpec([1, 3, 4])])
    def gradient(features, boxes):
        crops = crop_features(features, boxes, tf.constant([8.0, 8.0]), 4, pool_size=2, training=True)
        return tf.gradients(crops**2, features)

    operations = gradient.get_concrete_function().graph.get_operations()
    _, again = [operation for operation in operations if operation.type == "CropAndResize"]
    (of_pools,) = [operation for operation in operations if operation.type == "MaxPoolGrad"]
    assert of_pools.inputs[0].op is again
    upstream = of_pools.inputs[2].op
    assert upstream in _ancestors(again)  # else it would be made, and kept, long before


def _ancestors(operation):
    found, new = set(), [operation]
    while new:
        operation = new.pop()
        before = {*(given.op for given in operation.inputs), *operation.control_inputs}
        new += before - found
        found |= before
    return found


def test_the_draw_keeps_order_and_pads_with_zeros():
    given = proposals([[0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 11], [9, 9, 9, 9]], count=3)
    drawn, _ = draw_proposals(
        given, truth([[0, 0, 10, 10]], [0]), tf.constant([0, 0]), batch_size=4, positive_fraction=0.25
    )
    np.testing.assert_array_equal(drawn.count, [2])  # one of two positives, the negative, no padding row
    rows = drawn.boxes_yxyx[0, :2].numpy().tolist()
    assert [50, 50, 60, 60] in rows and (rows[0] == [0, 0, 10, 10] or rows[1] == [0, 0, 10, 11])
    np.testing.assert_array_equal(drawn.boxes_yxyx[0, 2:], np.zeros([2, 4]))


def test_losses_by_hand():
    given = proposals([[0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 0, 0]], count=2)
    logits = tf.constant([[0.0, 0, 0], [3.0, 0, 0], [0.0, 50, 0]])
    encodings = tf.constant([[[9.0, 9, 9, 9], [0, 2.0, 0, 0]]] * 3)  # class 1 is off by 2 in x
    losses = box_classifier_losses(BoxPredictions(logits, encodings), given, truth([[0, 0, 10, 10]], [1]))
    assert float(losses["box"]) == pytest.approx(1.5 / 2)
    expected = (np.log(3) + np.log(np.exp(3) + 2) - 3) / 2
    assert float(losses["class"]) == pytest.approx(expected, rel=1e-5)


def test_a_shared_box_is_trained_by_every_class():
    given = proposals([[0, 0, 10, 10]], count=1)
    predictions = BoxPredictions(tf.zeros([1, 4]), tf.constant([[[0, 2.0, 0, 0]]]))
    losses = box_classifier_losses(predictions, given, truth([[0, 0, 10, 10]], [2]))
    assert float(losses["box"]) == pytest.approx(1.5)


def test_proposals_in_a_crowd_cost_nothing():
    given = proposals([[0, 0, 10, 10], [50, 50, 60, 60]], count=2)
    predictions = BoxPredictions(tf.constant([[-9.0, 9.0], [0.0, 0.0]]), tf.zeros([2, 1, 4]))
    losses = box_classifier_losses(predictions, given, truth([[0, 0, 30, 30]], [0], crowd=[True]))
    assert float(losses["class"]) == pytest.approx(np.log(2) / 2, rel=1e-5)


def test_no_proposals_and_no_objects_cost_nothing_finite():
    given = proposals([[0, 0, 0, 0]], count=0)
    losses = box_classifier_losses(
        BoxPredictions(tf.zeros([1, 3]), tf.zeros([1, 2, 4])), given, truth([[0, 0, 0, 0]], [-1])
    )
    assert [float(loss) for loss in losses.values()] == [0.0, 0.0]


def test_detections_by_hand():
    given = proposals([[0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 0, 0]], count=2)
    logits = tf.math.log(tf.constant([[0.1, 0.2, 0.7], [0.2, 0.75, 0.05], [0.0001, 0.9, 0.0999]]))
    encodings = tf.zeros([3, 2, 4])
    found = detections(
        BoxPredictions(logits, encodings),
        given,
        tf.constant([[25, 40]]),
        max_detections_per_class=2,
        max_detections=3,
        nms_score_threshold=0.0,
        nms_iou_threshold=0.5,
    )
    np.testing.assert_allclose(found.scores[0], [0.75, 0.7, 0.2], rtol=1e-5)
    np.testing.assert_array_equal(found.classes[0], [0, 1, 0])
    np.testing.assert_allclose(found.boxes_yxyx[0, 0], [20, 20, 25, 30], atol=1e-4)


def test_dropout_is_keyed_by_its_seed_and_only_in_training():
    predictor = Predictor(num_classes=2, dropout_rate=0.5)
    features = tf.random.stateless_normal([4, 2, 2, 64], [0, 0])

    def scores(training, seed):
        return predictor(features, training=training, seed=tf.constant([0, seed])).class_logits.numpy()

    np.testing.assert_array_equal(scores(True, 1), scores(True, 1))
    assert not np.array_equal(scores(True, 1), scores(True, 2))
    np.testing.assert_array_equal(scores(False, 1), scores(False, 2))


@pytest.mark.parametrize(("shared", "boxes"), [(False, 5), (True, 1)])
def test_predictor_shapes(shared, boxes):
    result = Predictor(num_classes=5, share_box_across_classes=shared)(tf.zeros([3, 4, 4, 8]))
    assert result.class_logits.shape == (3, 6) and result.box_encodings.shape == (3, boxes, 4)
