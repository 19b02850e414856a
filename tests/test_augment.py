import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data.augment import Augmentation, AugmentationError

IMAGE = np.arange(20 * 30 * 3, dtype=np.uint32).astype(np.uint8).reshape(20, 30, 3)
BOXES = np.array([[2, 3, 12, 10], [0, 20, 20, 30]], np.float32)
CLASSES = np.array([4, 7], np.int32)
CROWD = np.array([False, True])


def apply(*transforms, seed=0, image=IMAGE, boxes=BOXES, classes=CLASSES, crowd=CROWD, **arguments):
    return Augmentation(list(transforms), **arguments)(image, boxes, classes, crowd, seed)


def test_flips_against_boxes_by_hand():
    image, boxes, classes, crowd = apply({"name": "HorizontalFlip", "p": 1})
    np.testing.assert_array_equal(image, IMAGE[:, ::-1])
    np.testing.assert_allclose(boxes, [[2, 20, 12, 27], [0, 0, 20, 10]], atol=1e-4)
    np.testing.assert_array_equal(classes, CLASSES)
    np.testing.assert_array_equal(crowd, CROWD)
    assert (boxes.dtype, classes.dtype, crowd.dtype) == (np.float32, np.int32, bool)

    image, boxes, _, _ = apply({"name": "VerticalFlip", "p": 1})
    np.testing.assert_array_equal(image, IMAGE[::-1])
    np.testing.assert_allclose(boxes, [[8, 3, 18, 10], [0, 20, 20, 30]], atol=1e-4)

    image, boxes, _, _ = apply({"name": "Transpose", "p": 1})
    np.testing.assert_array_equal(image, IMAGE.transpose(1, 0, 2))
    np.testing.assert_allclose(boxes, [[3, 2, 10, 12], [20, 0, 30, 20]], atol=1e-4)


def test_boxes_are_clipped_filtered_and_keep_their_rows():
    crop = {"name": "Crop", "x_min": 6, "y_min": 0, "x_max": 16, "y_max": 20, "p": 1}
    image, boxes, classes, crowd = apply(crop)
    assert image.shape == (20, 10, 3)
    np.testing.assert_allclose(boxes, [[2, 0, 12, 4]], atol=1e-4)
    assert (classes.tolist(), crowd.tolist()) == ([4], [False])
    # 4 of its 7 columns are left: 0.571.
    assert len(apply(crop, min_visibility=0.57)[1]) == 1
    assert len(apply(crop, min_visibility=0.58)[1]) == 0
    assert len(apply(crop, min_area=39.0)[1]) == 1
    assert len(apply(crop, min_area=41.0)[1]) == 0

    crop = {"name": "Crop", "x_min": 18, "y_min": 0, "x_max": 30, "y_max": 20, "p": 1}
    _, boxes, classes, crowd = apply(crop)
    np.testing.assert_allclose(boxes, [[0, 2, 20, 12]], atol=1e-4)
    assert (classes.tolist(), crowd.tolist()) == ([7], [True])


def test_images_without_boxes_stay():
    empty = {
        "boxes": np.zeros((0, 4), np.float32),
        "classes": np.zeros(0, np.int32),
        "crowd": np.zeros(0, bool),
    }
    crop = {"name": "Crop", "x_min": 12, "y_min": 0, "x_max": 18, "y_max": 20, "p": 1}
    for given in (empty, {}):  # none to begin with; none left
        image, boxes, classes, crowd = apply(crop, **given)
        assert image.shape == (20, 6, 3)
        assert (boxes.shape, classes.shape, crowd.shape) == ((0, 4), (0,), (0,))
        assert (boxes.dtype, classes.dtype, crowd.dtype) == (np.float32, np.int32, bool)


def test_inputs_are_left_alone():
    before = IMAGE.copy(), BOXES.copy()
    apply({"name": "HorizontalFlip", "p": 1}, {"name": "RandomBrightnessContrast", "p": 1})
    np.testing.assert_array_equal(IMAGE, before[0])
    np.testing.assert_array_equal(BOXES, before[1])


CHANCES = [
    {"name": "HorizontalFlip", "p": 0.5},
    {"name": "RandomBrightnessContrast", "brightness_limit": 0.2, "p": 0.8},
    {
        "name": "OneOf",
        "p": 0.7,
        "transforms": [{"name": "GaussNoise", "p": 1}, {"name": "VerticalFlip", "p": 1}],
    },
    {"name": "Affine", "translate_percent": 0.2, "p": 0.5},
]


def test_the_result_depends_on_the_seed_only_from_however_many_threads():
    def digest(result):
        return b"".join(part.tobytes() for part in result)

    def call(seed):
        return digest(augmentation(IMAGE, BOXES, CLASSES, CROWD, seed))

    augmentation = Augmentation(CHANCES)
    seeds = list(range(200))
    alone = [call(seed) for seed in seeds]
    assert len(set(alone)) > 150
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(call, seeds)) == alone
        assert list(pool.map(call, seeds[::-1])) == alone[::-1]
    augmentation = Augmentation(CHANCES)
    assert call(17) == alone[17]


def test_transforms_are_chosen_independently():
    augmentation = Augmentation([{"name": "HorizontalFlip", "p": 0.5}, {"name": "VerticalFlip", "p": 0.5}])
    seen = []
    for seed in range(200):
        image = augmentation(IMAGE, BOXES, CLASSES, CROWD, seed)[0]
        seen.append(
            next(
                (h, v)
                for h in (1, -1)
                for v in (1, -1)
                if np.array_equal(image, IMAGE[::v, ::h])
            )
        )  # fmt: skip
    for outcome in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        assert 25 < seen.count(outcome) < 75, outcome


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "HorizontalFlp"}, r"augment\[0\] HorizontalFlp: .*no such.*; nearest: 'HorizontalFlip'"),
        ({"p": 0.5}, r"augment\[0\]: expected a mapping with the 'name'"),
        ("HorizontalFlip", "expected a mapping"),
        (
            {"name": "RandomBrightnessContrast", "brightnes_limit": 0.2},
            "unknown argument 'brightnes_limit'; nearest: 'brightness_limit'",
        ),
        ({"name": "MedianBlur", "blur_limt": 3}, "unknown argument 'blur_limt'; nearest: 'blur_limit'"),
        ({"name": "HorizontalFlip", "p": 1.5}, "HorizontalFlip: .*less than or equal to 1"),
        ({"name": "HorizontalFlip", "p": float("nan")}, "HorizontalFlip: p: .* finite number, got nan"),
        ({"name": "Affine", "scale": [0.9, float("inf")]}, r"Affine: scale\[1\]: .* finite number, got inf"),
        (
            {"name": "Affine", "shear": {"x": [-float("inf"), 3]}},
            r"augment\[0\] Affine: shear\[x\]\[0\]: expected a finite number, got -inf; leave it out",
        ),
        ({"name": "RandomCrop"}, "RandomCrop: .*height"),
        ({"name": "Normalize"}, "the model normalises pixels itself"),
        ({"name": "MaskDropout"}, "cannot be used here: it needs mask"),
        ({"name": "Mosaic"}, "it needs mosaic_metadata"),
        ({"name": "OneOf"}, "expected a list 'transforms', got None"),
        (
            {"name": "OneOf", "transforms": [{"name": "Blur"}, {"name": "Blurr"}]},
            r"augment\[0\] OneOf\[1\] Blurr: .*nearest: 'Blur'",
        ),
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_an_error(entry, message):
    with pytest.raises(AugmentationError, match=f"(?s){message}"):
        Augmentation([entry])


def test_wrong_limits_are_errors():
    with pytest.raises(AugmentationError, match="min_area"):
        Augmentation([], min_area=0)
    with pytest.raises(AugmentationError, match="min_visibility"):
        Augmentation([], min_visibility=1.5)


def test_a_transform_that_fails_is_named_an_augmentation():
    with pytest.raises(AugmentationError, match=r"cannot be applied: .*exceeds image dimensions"):
        apply({"name": "RandomCrop", "height": 100, "width": 100, "p": 1})


def test_importing_is_quiet_and_asks_nobody():
    code = (
        "import sys, urllib.request\n"
        "urllib.request.OpenerDirector.open = lambda *a, **k: print('asked the network')\n"
        "import data.augment"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        check=True,
    )
    assert done.stdout + done.stderr == ""
