"""Augmentation options of the Object Detection API, as albumentations transforms.

Fields and defaults: `protos/preprocessor.proto`; meanings: `core/preprocessor.py`, whose pixels are 0 to 255.
"""

from collections.abc import Callable
from typing import Any

from detector.pipeline_fields import Fields

Transform = dict[str, Any]

_NO_KEYPOINTS = "there are no keypoints here, so it has no effect"

# As `random_distort_color` has them.
_DISTORT_BRIGHTNESS = 32 / 255
_DISTORT_HUE = 0.2
_DISTORT_RANGE = [0.5, 1.5]

_UNSUPPORTED = {
    "random_crop_image": "albumentations draws its crops differently; see BBoxSafeRandomCrop",
    "random_crop_pad_image": "albumentations draws its crops differently; see BBoxSafeRandomCrop",
    "random_crop_to_aspect_ratio": "albumentations draws its crops differently; see RandomCropNearBBox",
    "random_square_crop_by_scale": "albumentations draws its crops differently; see RandomSizedBBoxSafeCrop",
    "random_scale_crop_and_pad_to_square": "the resizer makes the canvas; see RandomScale",
    "random_image_scale": "the resizer sets the size afterwards; see Affine with a scale",
    "random_pixel_value_scale": "albumentations scales no single pixels; see MultiplicativeNoise",
    "random_black_patches": "albumentations draws its patches differently; see CoarseDropout",
    "random_patch_gaussian": "albumentations draws its patches differently; see GaussNoise",
    "random_jpeg_quality": "see ImageCompression",
    "adjust_gamma": "see RandomGamma",
    **dict.fromkeys(
        ("ssd_random_crop", "ssd_random_crop_pad", "ssd_random_crop_fixed_aspect_ratio"),
        "albumentations draws its crops differently; see BBoxSafeRandomCrop",
    ),
    **dict.fromkeys(
        (
            *("normalize_image", "subtract_channel_mean", "rgb_to_gray", "resize_image"),
            "scale_boxes_to_pixel_coordinates",
        ),
        "normalising and resizing are the model's and the resizer's here",
    ),
    **dict.fromkeys(
        (
            *("random_jitter_boxes", "random_pad_image", "random_absolute_pad_image", "random_resize_method"),
            *("random_downscale_to_target_pixels", "random_self_concat_image", "autoaugment_image"),
            *("ssd_random_crop_pad_fixed_aspect_ratio", "convert_class_logits_to_softmax"),
            *("drop_label_probabilistically", "remap_labels"),
        ),
        "albumentations has no transform that does this",
    ),
}


def read_augmentation(option: Fields) -> list[Transform]:
    """Return the transforms that one `data_augmentation_options` message amounts to, in their order.

    A transform is {name: a class of albumentations, **its arguments}.
    """
    name = option.one_of(*_SUPPORTED, *_UNSUPPORTED)
    for refused, reason in _UNSUPPORTED.items():
        option.refuse(refused, consequence=f"{reason}; set data.augment and delete this")
    return _SUPPORTED[name](option.message(name)) if name and name in _SUPPORTED else []


def _flip(transform: str) -> Callable[[Fields], list[Transform]]:
    def read(step: Fields) -> list[Transform]:
        step.ignore({"keypoint_flip_permutation": _NO_KEYPOINTS})
        return [{"name": transform, "p": step.number("probability", 0.5)}]

    return read


def _quarter_turn(step: Fields) -> list[Transform]:
    step.ignore({"keypoint_rot_permutation": _NO_KEYPOINTS})
    # Counterclockwise, always by 90 degrees; RandomRotate90 would draw among four turns.
    turn = [{"name": "Transpose", "p": 1.0}, {"name": "VerticalFlip", "p": 1.0}]
    return [{"name": "Sequential", "transforms": turn, "p": step.number("probability", 0.5)}]


def _gray(step: Fields) -> list[Transform]:
    # Its default method weighs the channels like tf.image.rgb_to_grayscale.
    return [{"name": "ToGray", "p": step.number("probability", 0.1)}]


def _brightness(step: Fields) -> list[Transform]:
    return [_brightness_by(step.number("max_delta", 0.2))]


def _contrast(step: Fields) -> list[Transform]:
    return [_contrast_by(step, [step.number("min_delta", 0.8), step.number("max_delta", 1.25)])]


def _saturation(step: Fields) -> list[Transform]:
    return [_saturation_by(step, [step.number("min_delta", 0.8), step.number("max_delta", 1.25)])]


def _hue(step: Fields) -> list[Transform]:
    delta = step.number("max_delta", 0.02)
    if delta > 0.5:
        step.note("max_delta", delta, "expected at most 0.5, half of the circle", changes_results=True)
    return [_color_jitter(hue=[-delta, delta])]


def _distort(step: Fields) -> list[Transform]:
    ordering = step.integer("color_ordering", 0)
    if ordering not in (0, 1):
        step.note("color_ordering", ordering, "expected 0 or 1", changes_results=True)
    contrast = _contrast_by(step, _DISTORT_RANGE)
    saturation = _saturation_by(step, _DISTORT_RANGE)
    hue = _color_jitter(hue=[-_DISTORT_HUE, _DISTORT_HUE])
    rest = [contrast, saturation, hue] if ordering else [saturation, hue, contrast]
    return [_brightness_by(_DISTORT_BRIGHTNESS), *rest]


def _brightness_by(delta: float) -> Transform:
    # brightness_by_max adds the same part of 255 to every pixel, as the original does.
    limits = {"brightness_limit": [-delta, delta], "contrast_limit": [0.0, 0.0]}
    return {"name": "RandomBrightnessContrast", **limits, "brightness_by_max": True, "p": 1.0}


def _contrast_by(step: Fields, factors: list[float]) -> Transform:
    step.note(
        "contrast",
        factors,
        "the same factors, about the mean grey of the image; the API takes each channel's own mean",
        changes_results=False,
    )
    return _color_jitter(contrast=factors)


def _saturation_by(step: Fields, factors: list[float]) -> Transform:
    step.note(
        "saturation",
        factors,
        "the same factors, towards the pixel's grey; the API scales the S of HSV",
        changes_results=False,
    )
    return _color_jitter(saturation=factors)


def _color_jitter(**changed: list[float]) -> Transform:
    factors = {name: [1.0, 1.0] for name in ("brightness", "contrast", "saturation")}
    return {"name": "ColorJitter", **factors, "hue": [0.0, 0.0], **changed, "p": 1.0}


_SUPPORTED: dict[str, Callable[[Fields], list[Transform]]] = {
    "random_horizontal_flip": _flip("HorizontalFlip"),
    "random_vertical_flip": _flip("VerticalFlip"),
    "random_rotation90": _quarter_turn,
    "random_rgb_to_gray": _gray,
    "random_adjust_brightness": _brightness,
    "random_adjust_contrast": _contrast,
    "random_adjust_hue": _hue,
    "random_adjust_saturation": _saturation,
    "random_distort_color": _distort,
}
