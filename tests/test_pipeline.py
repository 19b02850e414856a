import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow as tf

from data.augment import Augmentation, AugmentationError
from data.dataset import Category, DetectionDataset, EncodedImage, Example, LabelError
from data.pipeline import (
    View,
    evaluation_batches,
    example_batches,
    load_example,
    plain_errors,
    training_batches,
    training_entry,
    training_view,
    view_batches,
)
from detector.resizer import FixedShapeResizer, KeepAspectRatioResizer, to_canvas

FIXED = to_canvas(FixedShapeResizer(32, 48))


def encode(image, suffix=".png"):
    return cv2.imencode(suffix, image)[1].tobytes()


@pytest.fixture
def make_dataset(tmp_path):
    def make(entries):
        """`entries`: (encoded bytes, (height, width), boxes_yxyx, classes, is_crowd)"""
        examples = []
        for number, (encoded, (height, width), boxes, classes, is_crowd) in enumerate(entries):
            path = tmp_path / f"{number}.image"
            path.write_bytes(encoded)
            boxes_yxyx = np.array(boxes, np.float32).reshape(-1, 4)
            examples.append(
                Example(
                    image_id=100 + number,
                    height=height,
                    width=width,
                    boxes_yxyx=boxes_yxyx,
                    classes=np.array(classes, np.int32),
                    is_crowd=np.array(is_crowd, bool),
                    areas=np.prod(boxes_yxyx[:, 2:] - boxes_yxyx[:, :2], axis=1),
                    source=EncodedImage(path),
                )
            )
        return DetectionDataset("set", (Category(1, "a"), Category(2, "b")), tuple(examples))

    return make


@pytest.fixture
def dataset(make_dataset):
    """Five images of different sizes: two boxes, one of them a crowd; none; one; one; one."""
    rng = np.random.default_rng(0)
    entries = []
    for number in range(5):
        height, width = 16 + 4 * number, 24 + 2 * number
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        boxes = [[2, 3, 10, 12]] if number != 1 else []
        classes = [number % 2] if number != 1 else []
        crowd = [False] * len(boxes)
        if number == 0:
            boxes, classes, crowd = [*boxes, [0, 0, 16, 24]], [0, 1], [False, True]
        entries.append((encode(image), (height, width), boxes, classes, crowd))
    return make_dataset(entries)


def take(batches, count):
    return [{key: value.numpy() for key, value in batch.items()} for batch in batches.take(count)]


def rows_of(batch):
    return [{key: value[row] for key, value in batch.items()} for row in range(len(batch["image_id"]))]


def assert_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key], err_msg=key)


def test_a_batch_is_as_the_contract_says(dataset):
    batches = training_batches(dataset, batch_size=2, resize=FIXED, seed=0)
    expected = {
        "image": ([2, 32, 48, 3], tf.uint8),
        "image_size_hw": ([2, 2], tf.int32),
        "boxes_yxyx": ([2, 2, 4], tf.float32),
        "classes": ([2, 2], tf.int32),
        "is_crowd": ([2, 2], tf.bool),
        "image_id": ([2], tf.int64),
        "original_size_hw": ([2, 2], tf.int32),
    }
    # Static, so that a training step is traced once.
    assert {k: (v.shape.as_list(), v.dtype) for k, v in batches.element_spec.items()} == expected
    batches = evaluation_batches(dataset, batch_size=2, resize=FIXED)
    assert {k: (v.shape.as_list(), v.dtype) for k, v in batches.element_spec.items()} == expected


def test_values_crowds_and_images_without_boxes(dataset):
    first, *_ = take(evaluation_batches(dataset, batch_size=2, resize=FIXED, max_boxes=3), 1)
    np.testing.assert_array_equal(first["image_id"], [100, 101])
    np.testing.assert_array_equal(first["original_size_hw"], [[16, 24], [20, 26]])
    np.testing.assert_array_equal(first["image_size_hw"], [[32, 48], [32, 48]])
    # 16x24 onto 32x48: twice as large in both directions.
    np.testing.assert_allclose(
        first["boxes_yxyx"], [[[4, 6, 20, 24], [0, 0, 32, 48], [0] * 4], [[0] * 4] * 3], rtol=1e-6
    )
    np.testing.assert_array_equal(first["classes"], [[0, 1, -1], [-1, -1, -1]])
    np.testing.assert_array_equal(first["is_crowd"], [[False, True, False], [False] * 3])


def test_boxes_follow_each_direction_of_a_resize(dataset):
    keep = to_canvas(KeepAspectRatioResizer(32, 64, pad=True))
    batch = take(evaluation_batches(dataset, batch_size=5, resize=keep), 1)[0]
    assert batch["image"].shape == (5, 64, 64, 3)
    for number, (height, width) in enumerate(batch["original_size_hw"]):
        on_canvas = batch["image_size_hw"][number]
        np.testing.assert_array_equal(
            on_canvas, np.round(np.array([height, width]) * (32 / min(height, width)))
        )
        assert batch["image"][number, : on_canvas[0], : on_canvas[1]].any()
        assert not batch["image"][number, on_canvas[0] :].any()
        assert not batch["image"][number, :, on_canvas[1] :].any()
        if number != 1:
            scale = np.tile(on_canvas / [height, width], 2)
            np.testing.assert_allclose(batch["boxes_yxyx"][number, 0], [2, 3, 10, 12] * scale, rtol=1e-6)


def test_canvases_of_different_sizes_are_padded_to_the_largest(dataset):
    batch = take(
        evaluation_batches(dataset, batch_size=5, resize=lambda image: (image, tf.shape(image)[:2])), 1
    )[0]
    assert batch["image"].shape == (5, 32, 32, 3)
    for number in range(5):
        image = load_example(dataset, View(number, None)).image
        height, width, _ = image.shape
        np.testing.assert_array_equal(batch["image_size_hw"][number], [height, width])
        np.testing.assert_array_equal(batch["image"][number, :height, :width], image)
        assert batch["image"][number].sum() == image.sum()


def test_evaluation_sees_every_image_once_and_marks_copies(dataset):
    batches = take(evaluation_batches(dataset, batch_size=2, resize=FIXED), -1)
    assert [batch["image_id"].tolist() for batch in batches] == [[100, 101], [102, 103], [104, -1]]
    (batch,) = take(evaluation_batches(dataset, batch_size=5, resize=FIXED), -1)
    assert batch["image_id"].tolist() == [100, 101, 102, 103, 104]
    (batch,) = take(evaluation_batches(dataset, batch_size=7, resize=FIXED), -1)
    assert batch["image_id"].tolist() == [100, 101, 102, 103, 104, -1, -1]
    np.testing.assert_array_equal(batch["image"][4], batch["image"][6])


AUGMENTATION = [
    {"name": "HorizontalFlip", "p": 0.5},
    {"name": "RandomBrightnessContrast", "p": 0.8},
    {"name": "Affine", "translate_percent": 0.2, "p": 0.5},
]


def test_a_run_that_starts_later_sees_the_batches_of_one_that_did_not_stop(dataset):
    def batches(count, **more):
        # Built anew each time: nothing is carried over in an object.
        made = training_batches(
            dataset, batch_size=2, resize=FIXED, augment=Augmentation(AUGMENTATION), seed=3, **more
        )
        return take(made, count)

    whole = batches(9)  # more than three epochs; two of them end within a batch
    assert_equal(batches(9), whole)
    for start in (1, 4, 7):
        assert_equal(batches(9 - start, start_step=start), whole[start:])


def test_the_batch_size_changes_the_cut_and_nothing_else(dataset):
    def examples(batch_size):
        made = training_batches(
            dataset, batch_size=batch_size, resize=FIXED, augment=Augmentation(AUGMENTATION), seed=3
        )
        batches = take(made, 12 // batch_size)
        return [{key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}]

    assert_equal(examples(3), examples(4))


def test_every_epoch_is_another_order_of_all_images():
    def epochs(seed):
        indices = [training_view(position, 7, seed).index for position in range(70)]
        return [indices[start : start + 7] for start in range(0, 70, 7)]

    for seed in (0, 1):
        assert all(sorted(epoch) == list(range(7)) for epoch in epochs(seed))
        assert len({tuple(epoch) for epoch in epochs(seed)}) > 5
    assert epochs(0) != epochs(1)
    seeds = {training_view(position, 7, seed).augmentation_seed for position in range(100) for seed in (0, 1)}
    assert len(seeds) == 200


def test_deterministic_operations_leave_loading_parallel(dataset):
    # With them on, tf.data runs a function that it takes for stateful in one thread.
    code = """
import sys, threading, numpy as np, tensorflow as tf
from pathlib import Path
from data.dataset import *
from data.pipeline import *
tf.config.experimental.enable_op_determinism()
tf.random.set_seed(0)
path = Path(sys.argv[1])
example = Example(1, 16, 24, np.array([[2, 3, 10, 12]], np.float32), np.zeros(1, np.int32), np.zeros(1, bool),
                  np.ones(1, np.float32), EncodedImage(path))
dataset = DetectionDataset("set", (Category(1, "a"),), (example,))
first, met = threading.Lock(), threading.Event()
def augment(*given):
    if first.acquire(blocking=False):
        print("met" if met.wait(20) else "alone")  # a second call has to begin before the first ends
    else:
        met.set()
    return given[:4]
resize = lambda image: (image, tf.shape(image)[:2])
for batch in training_batches(dataset, batch_size=2, resize=resize, augment=augment, seed=0).take(1):
    print(batch["image"].shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(dataset.examples[0].source.path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout == "met\n(2, 16, 24, 3)\n", done.stderr[-2000:]


def test_views_of_each_image_come_from_the_same_function(dataset):
    flip = Augmentation([{"name": "HorizontalFlip", "p": 0.5}])

    def view(position):
        return View(position // 4, position + 1)

    batches = example_batches(
        dataset, tf.data.Dataset.range(20), view, batch_size=4, resize=FIXED, augment=flip
    )
    batches = take(batches, -1)
    assert [batch["image_id"].tolist() for batch in batches] == [[100 + n] * 4 for n in range(5)]
    straight = load_example(dataset, View(0, None))
    for position in range(4):
        image = load_example(dataset, View(0, position + 1), flip).image
        assert np.array_equal(image, straight.image) or np.array_equal(image, straight.image[:, ::-1])
        canvas, _ = FIXED(tf.constant(image))
        np.testing.assert_array_equal(batches[0]["image"][position], canvas)
    assert len({batches[0]["image"][position].tobytes() for position in range(4)}) == 2


def test_augmented_images_of_another_size_scale_their_boxes(dataset):
    crop = Augmentation([{"name": "Crop", "x_min": 0, "y_min": 0, "x_max": 12, "y_max": 16, "p": 1}])
    made = training_batches(dataset, batch_size=5, resize=FIXED, augment=crop, seed=0)
    batch = take(made, 1)[0]
    row = batch["image_id"].tolist().index(100)
    # 16x12 onto 32x48: twice as high, four times as wide; the crowd box is half in the crop.
    np.testing.assert_allclose(batch["boxes_yxyx"][row], [[4, 12, 20, 48], [0, 0, 32, 48]], rtol=1e-5)
    np.testing.assert_array_equal(batch["original_size_hw"][row], [16, 24])
    np.testing.assert_array_equal(batch["is_crowd"][row], [False, True])


def test_gray_rgba_palette_and_jpeg_images_become_rgb(make_dataset):
    rng = np.random.default_rng(0)
    gray = rng.integers(0, 256, (8, 9), np.uint8)
    rgba = rng.integers(0, 256, (8, 9, 4), np.uint8)
    flat = np.full((8, 9, 3), (10, 100, 200), np.uint8)  # blue, green, red, as OpenCV writes
    deep = np.full((8, 9, 3), (0, 1 << 15, (1 << 16) - 1), np.uint16)
    box = [[0, 0, 4, 4]]
    images = [
        encode(gray),
        encode(rgba),
        encode(flat, ".jpg"),
        encode(gray, ".jpg"),
        encode(flat, ".bmp"),
        encode(deep),
    ]
    dataset = make_dataset([(encoded, (8, 9), box, [0], [False]) for encoded in images])
    loaded = [load_example(dataset, View(index, None)).image for index in range(len(images))]
    assert all((image.shape, image.dtype) == ((8, 9, 3), np.uint8) for image in loaded)
    np.testing.assert_array_equal(loaded[0], np.repeat(gray[:, :, np.newaxis], 3, axis=2))
    np.testing.assert_array_equal(loaded[1], rgba[:, :, [2, 1, 0]])
    np.testing.assert_allclose(loaded[2].astype(int), flat[:, :, ::-1].astype(int), atol=3)
    assert np.ptp(loaded[3], axis=2).max() == 0
    np.testing.assert_array_equal(loaded[4], flat[:, :, ::-1])
    np.testing.assert_array_equal(loaded[5][0, 0], [255, 128, 0])


def spoil(dataset, encoded):
    dataset.examples[2].source.path.write_bytes(encoded)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_an_image_that_does_not_decode_is_named(dataset, suffix):
    whole = encode(np.random.default_rng(0).integers(0, 256, (24, 28, 3), np.uint8), suffix)
    spoil(dataset, whole[: len(whole) // 2])
    with pytest.raises(LabelError, match=r"2\.image: the image cannot be decoded: [^{}\[\]]+$"):
        load_example(dataset, View(2, None))
    # And through TensorFlow, which wraps the error.
    with pytest.raises(LabelError, match=r"^/.*2\.image: the image cannot be decoded[^\n]*$"), plain_errors():
        take(evaluation_batches(dataset, batch_size=2, resize=FIXED), -1)


def test_an_image_that_is_gone_or_another_is_named(dataset):
    spoil(dataset, encode(np.zeros((5, 6, 3), np.uint8)))
    with pytest.raises(LabelError, match=r"2\.image: the image is 6x5 but was 28x24"):
        load_example(dataset, View(2, None))
    dataset.examples[2].source.path.unlink()
    with (
        pytest.raises(LabelError, match=r"2\.image: the image cannot be decoded.*No such file"),
        plain_errors(),
    ):
        take(evaluation_batches(dataset, batch_size=2, resize=FIXED), -1)


def test_an_image_that_cannot_be_augmented_is_named(dataset):
    augment = Augmentation([{"name": "RandomCrop", "height": 18, "width": 18, "p": 1}])
    with (
        pytest.raises(AugmentationError, match=r"^/.*0\.image: augmentation cannot be applied: Crop size"),
        plain_errors(),
    ):
        take(training_batches(dataset, batch_size=5, resize=FIXED, augment=augment, seed=0), 1)


def test_other_errors_pass_unchanged():
    with pytest.raises(tf.errors.InvalidArgumentError, match="mine"), plain_errors():
        raise tf.errors.InvalidArgumentError(None, None, "mine")


def test_wrong_arguments(dataset):
    with pytest.raises(ValueError, match=r"max_boxes is 1, but .*0\.image has 2 boxes.*set it to 2 or more"):
        training_batches(dataset, batch_size=2, resize=FIXED, seed=0, max_boxes=1)
    with pytest.raises(ValueError, match="batch_size of at least 1, got 0"):
        evaluation_batches(dataset, batch_size=0, resize=FIXED)
    with pytest.raises(ValueError, match="seed and start_step from 0, got -1 and 0"):
        training_batches(dataset, batch_size=2, resize=FIXED, seed=-1)


def test_views_are_shown_in_turn_and_are_the_same_for_every_seed():
    def epochs(seed):
        shown = [training_view(position, 7, seed, views=2) for position in range(28)]
        return [shown[start : start + 7] for start in range(0, 28, 7)]

    first, second, third, fourth = (set(epoch) for epoch in epochs(0))
    assert {view.index for view in first} == set(range(7))
    assert first == third and second == fourth and not first & second
    assert len({view.augmentation_seed for view in first | second}) == 14
    assert [set(epoch) for epoch in epochs(1)] == [first, second, third, fourth]
    assert epochs(1) != epochs(0) and epochs(0)[0] != epochs(0)[2]


def test_view_batches_hold_what_training_sees(dataset):
    how = {"batch_size": 2, "resize": FIXED, "augment": Augmentation([{"name": "HorizontalFlip", "p": 0.5}])}
    entries = [row for batch in take(view_batches(dataset, views=3, **how), -1) for row in rows_of(batch)]
    real = [row for row in entries if row["image_id"] >= 0]
    assert len(real) == 3 * len(dataset) and len(entries) - len(real) < 2
    seen = take(training_batches(dataset, seed=4, views=3, **how), 6)
    for position, row in enumerate(row for batch in seen for row in rows_of(batch)):
        kept = real[training_entry(position, len(dataset), 4, 3)]
        assert_equal([row], [kept])
    assert position > len(dataset)


def test_no_views_are_refused(dataset):
    with pytest.raises(ValueError, match="at least 1 of the views of an image, got 0"):
        training_batches(dataset, batch_size=1, resize=FIXED, seed=0, views=0)
