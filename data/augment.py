"""Augmentation of an image and its boxes by albumentations, as a pure function of both and a seed."""

import inspect
import math
import os
import random
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Read at import: albumentations would ask the package index for a newer version of itself.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A

from data.label_checks import nearest

# What the transforms are given; those that ask for more (a mask, other images) cannot be used.
_TARGETS = {"image", "bboxes"}

# They turn pixels into numbers of another range, which the model does itself.
_NORMALISERS = {"Normalize", "ToFloat", "FromFloat", "ToTensorV2", "ToTensor3D"}

_CHOICES = {
    name: value
    for name, value in vars(A).items()
    if inspect.isclass(value)
    and (
        (issubclass(value, A.ImageOnlyTransform | A.DualTransform) and not issubclass(value, A.Transform3D))
        or value in (A.OneOf, A.SomeOf, A.RandomOrder, A.Sequential)
    )
    and value not in (A.ImageOnlyTransform, A.DualTransform, A.Lambda)
}


class AugmentationError(ValueError):
    """An augmentation's configuration is wrong, or it cannot be applied to an image."""


class Augmentation:
    """A row of albumentations transforms; call it with an image, its boxes and a seed.

    Calls are independent of each other and may come from several threads.
    """

    def __init__(
        self, transforms: Sequence[Mapping[str, Any]], *, min_area: float = 1.0, min_visibility: float = 0.1
    ):
        """Build the transforms; see https://albumentations.ai for the names and arguments.

        Args:
            transforms: `{"name": "HorizontalFlip", "p": 0.5}` and so on; `OneOf`, `SomeOf`, `RandomOrder` and
                `Sequential` have a list `transforms` of such inside.
            min_area: boxes of which less than this is left, in pixels of the augmented image, are dropped.
            min_visibility: so are boxes of which less than this part is left.

        Raises:
            AugmentationError: an unknown name (the nearest is named) or argument, or a wrong value.
        """
        if not min_area > 0:
            # albumentations lets boxes without area through at 0, and then fails on them.
            raise AugmentationError(f"min_area: expected a positive number of pixels, got {min_area}")
        if not 0 <= min_visibility <= 1:
            raise AugmentationError(f"min_visibility: expected a part from 0 to 1, got {min_visibility}")
        self._config = list(transforms)
        self._min_area = min_area
        self._min_visibility = min_visibility
        self._local = threading.local()
        self._local.compose = self._build()  # so that mistakes come to light here

    def __call__(
        self, image: np.ndarray, boxes_yxyx: np.ndarray, classes: np.ndarray, is_crowd: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the four augmented; boxes are clipped to the image, those (nearly) out of it dropped.

        Args:
            image: uint8 [h, w, 3]; the result may have another height and width.
            boxes_yxyx: float32 [n, 4], pixels.
            classes: int32 [n].
            is_crowd: bool [n].
            seed: from 0; all that chance there is.

        Raises:
            AugmentationError: a transform cannot be applied (say, a crop larger than the image).
        """
        if not hasattr(self._local, "compose"):
            # The transforms hold the state of their random numbers: one row of them for each thread.
            self._local.compose = self._build()
        compose = self._local.compose
        # `set_random_seed` would seed every transform alike, so that all with p = 0.5 happen together or not
        # at all; one state that they share makes them independent.
        compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        try:
            result = compose(
                image=image,
                bboxes=boxes_yxyx[:, [1, 0, 3, 2]],
                rows=np.arange(len(boxes_yxyx), dtype=np.float32),
            )
        except Exception as error:  # whatever a transform may raise, the reader needs to know it was one
            raise AugmentationError(f"augmentation cannot be applied: {error}") from error
        augmented = result["image"]
        if augmented.dtype != np.uint8 or augmented.ndim != 3 or augmented.shape[2] != 3:
            raise AugmentationError(
                f"augmentation must return uint8 [h, w, 3], got {augmented.dtype} {list(augmented.shape)}"
            )
        rows = np.asarray(result["rows"], np.int64)
        boxes_xyxy = np.asarray(result["bboxes"], np.float32).reshape(-1, 4)
        return np.ascontiguousarray(augmented), boxes_xyxy[:, [1, 0, 3, 2]], classes[rows], is_crowd[rows]

    def _build(self) -> A.Compose:
        return A.Compose(
            [_transform(entry, f"augment[{number}]") for number, entry in enumerate(self._config)],
            bbox_params=A.BboxParams(
                format="pascal_voc",
                label_fields=["rows"],
                clip=True,
                min_area=self._min_area,
                min_visibility=self._min_visibility,
            ),
        )


def _transform(entry: Mapping[str, Any], place: str) -> Any:
    """Return the transform that `entry` describes; `place` is where it stands, for messages."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise AugmentationError(f"{place}: expected a mapping with the 'name' of a transform, got {entry!r}")
    arguments = {str(key): value for key, value in entry.items() if key != "name"}
    name = entry["name"]
    place = f"{place} {name}"
    if name not in _CHOICES:
        raise AugmentationError(f"{place}: albumentations has no such transform{nearest(name, _CHOICES)}")
    if name in _NORMALISERS:
        raise AugmentationError(f"{place}: the model normalises pixels itself; leave this transform out")
    known = [parameter for parameter in inspect.signature(_CHOICES[name]).parameters if parameter != "strict"]
    for argument in arguments:
        if argument not in known:
            raise AugmentationError(
                f"{place}: unknown argument {argument!r}{nearest(argument, known)}; it has {', '.join(known)}"
            )
        _require_finite(arguments[argument], f"{place}: {argument}")
    if issubclass(_CHOICES[name], A.BaseCompose):
        inside = arguments.get("transforms")
        if not isinstance(inside, Sequence) or isinstance(inside, str) or not inside:
            raise AugmentationError(f"{place}: expected a list 'transforms', got {inside!r}")
        arguments["transforms"] = [
            _transform(each, f"{place}[{number}]") for number, each in enumerate(inside)
        ]
    try:
        transform: Any = _CHOICES[name](**arguments)
    except (TypeError, ValueError) as error:
        raise AugmentationError(f"{place}: {error}") from error
    if isinstance(transform, A.BaseCompose):
        return transform
    needs = set(transform.targets_as_params) - _TARGETS
    if needs or (isinstance(transform, A.DualTransform) and "bboxes" not in transform.targets):
        needed = ", ".join(sorted(needs)) or "no boxes"
        raise AugmentationError(f"{place}: cannot be used here: it needs {needed}")
    return transform


def _require_finite(value: Any, place: str) -> None:
    """Refuse infinity and what is no number, which pass albumentations' own checks or fail image by image."""
    if isinstance(value, float) and not math.isfinite(value):
        raise AugmentationError(
            f"{place}: expected a finite number, got {value}; leave it out for albumentations' default"
        )
    if isinstance(value, Mapping):
        for key, each in value.items():
            _require_finite(each, f"{place}[{key}]")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for number, each in enumerate(value):
            _require_finite(each, f"{place}[{number}]")
