import colorsys

import numpy as np
import pytest

from data.augment import Augmentation
from detector.pipeline_augmentation import read_augmentation
from detector.pipeline_fields import Account
from detector.protobuf_text import parse

NO_BOXES = (np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool))


def transforms(text):
    return read_augmentation(Account().open(parse(text)))


def augmented(text, image, seed=0, always=True):
    entries = [entry | ({"p": 1.0} if always else {}) for entry in transforms(text)]
    return Augmentation(entries)(image, *NO_BOXES, seed)[0]


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def test_probabilities():
    assert transforms("random_horizontal_flip {}") == [{"name": "HorizontalFlip", "p": 0.5}]
    assert transforms("random_horizontal_flip { probability: 0.1 }")[0]["p"] == 0.1
    assert transforms("random_vertical_flip { probability: 0.2 }") == [{"name": "VerticalFlip", "p": 0.2}]
    assert transforms("random_rotation90 {}")[0]["p"] == 0.5
    assert transforms("random_rgb_to_gray {}")[0]["p"] == 0.1
    for text in ("brightness", "contrast", "hue", "saturation"):
        assert [entry["p"] for entry in transforms(f"random_adjust_{text} {{}}")] == [1.0]


def test_default_ranges():
    assert transforms("random_adjust_brightness {}")[0]["brightness_limit"] == [-0.2, 0.2]
    assert transforms("random_adjust_contrast {}")[0]["contrast"] == [0.8, 1.25]
    assert transforms("random_adjust_saturation {}")[0]["saturation"] == [0.8, 1.25]
    assert transforms("random_adjust_hue {}")[0]["hue"] == [-0.02, 0.02]


def test_a_quarter_turn_is_counterclockwise_and_takes_the_boxes_along(image):
    np.testing.assert_array_equal(augmented("random_rotation90 {}", image), np.rot90(image))
    entries = [entry | {"p": 1.0} for entry in transforms("random_rotation90 {}")]
    boxes = np.array([[1, 2, 4, 8]], np.float32)  # ymin, xmin, ymax, xmax of 6 x 9
    turned = Augmentation(entries)(image, boxes, np.zeros(1, np.int32), np.zeros(1, bool), 0)
    np.testing.assert_allclose(turned[1], [[1, 1, 7, 4]], atol=1e-4)  # new y = 9 - x, new x = y


def test_flips(image):
    np.testing.assert_array_equal(augmented("random_horizontal_flip {}", image), image[:, ::-1])
    np.testing.assert_array_equal(augmented("random_vertical_flip {}", image), image[::-1])


def test_gray_has_the_weights_of_the_original(image):
    expected = image @ np.array([0.2989, 0.587, 0.114])
    gray = augmented("random_rgb_to_gray {}", image)
    np.testing.assert_allclose(gray, np.stack([expected] * 3, axis=-1), atol=1)


def test_brightness_is_added(image):
    """The same for every pixel, clipped, within 255 * max_delta, and down as well as up."""
    shifts = []
    for seed in range(8):
        bright = augmented("random_adjust_brightness { max_delta: 0.3 }", image, seed).astype(float)
        inner = (image > 80) & (image < 175)  # not clipped by 0.3 * 255 = 76.5
        shifts.append((bright - image)[inner].mean())
        np.testing.assert_allclose(bright, np.clip(image + shifts[-1], 0, 255), atol=1)
        # The same for a darker image: it does not depend on the image.
        dark = augmented("random_adjust_brightness { max_delta: 0.3 }", image // 2 + 40, seed).astype(float)
        np.testing.assert_allclose(dark, np.clip(image // 2 + 40 + shifts[-1], 0, 255), atol=1.5)
    assert min(shifts) < -10 and max(shifts) > 10 and max(map(abs, shifts)) <= 77


def test_hue_turns_by_a_part_of_the_circle(image):
    turns = set()
    for seed in range(8):
        changed = augmented("random_adjust_hue { max_delta: 0.1 }", image, seed)
        before = [colorsys.rgb_to_hsv(*(pixel / 255)) for pixel in image.reshape(-1, 3)]
        after = [colorsys.rgb_to_hsv(*(pixel / 255)) for pixel in changed.reshape(-1, 3)]
        turn = [
            (a[0] - b[0] + 0.5) % 1 - 0.5 for b, a in zip(before, after, strict=True) if b[1] * b[2] > 0.3
        ]
        assert np.ptp(turn) < 0.03  # 8 bits hold the hue in steps of 2 degrees
        assert abs(np.median(turn)) <= 0.11
        turns.add(round(float(np.median(turn)), 2))
    assert min(turns) < 0 < max(turns)


def test_contrast_and_saturation_have_the_factors(image):
    gray = np.repeat(image[..., :1], 3, axis=-1)  # where the mean grey is each channel's own
    mean = gray.mean()
    doubled = augmented("random_adjust_contrast { min_delta: 0.5 max_delta: 0.5 }", gray)
    np.testing.assert_allclose(doubled, mean + 0.5 * (gray - mean), atol=1.5)
    np.testing.assert_array_equal(
        augmented("random_adjust_saturation { min_delta: 0 max_delta: 0 }", image),
        augmented("random_rgb_to_gray {}", image),
    )
    np.testing.assert_array_equal(
        augmented("random_adjust_saturation { min_delta: 1 max_delta: 1 }", image), image
    )


def test_the_difference_of_contrast_and_saturation_is_noted():
    account = Account()
    read_augmentation(account.open(parse("random_distort_color {}"), "options"))
    assert [note.field for note in account.notes] == [
        "options.random_distort_color.contrast",
        "options.random_distort_color.saturation",
    ]
    assert not any(note.changes_results for note in account.notes)


def changed_by(entries):
    unchanged = {"contrast": [1.0, 1.0], "saturation": [1.0, 1.0], "hue": [0.0, 0.0]}
    for entry in entries:
        yield (
            entry["name"],
            {key: entry[key] for key in unchanged if entry.get(key, unchanged[key]) != unchanged[key]},
        )


def test_distortion_of_colours_in_both_orders(image):
    contrast, saturation = {"contrast": [0.5, 1.5]}, {"saturation": [0.5, 1.5]}
    hue = {"hue": [-0.2, 0.2]}
    for ordering, expected in ((0, [saturation, hue, contrast]), (1, [contrast, saturation, hue])):
        entries = transforms(f"random_distort_color {{ color_ordering: {ordering} }}")
        assert entries[0]["brightness_limit"] == [-32 / 255, 32 / 255]
        assert list(changed_by(entries[1:])) == [("ColorJitter", change) for change in expected]
    assert transforms("random_distort_color {}") == transforms("random_distort_color { color_ordering: 0 }")
    assert augmented("random_distort_color {}", image).shape == image.shape


@pytest.mark.parametrize("name", ["random_crop_image", "random_square_crop_by_scale", "random_jpeg_quality"])
def test_what_albumentations_does_otherwise_is_refused(name):
    account = Account()
    assert read_augmentation(account.open(parse(f"{name} {{}}"), "options")) == []
    (note,) = account.notes
    assert (note.field, note.changes_results) == (f"options.{name}", True)
