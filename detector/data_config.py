"""The schema of the data: where examples come from, and how they are augmented."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from detector.config_section import Section


class CocoSource(Section):
    """A COCO JSON file and the folder of its images."""

    format: Literal["coco"]
    annotations: Path
    """The JSON file."""
    images: Path
    """The folder that its file names are in."""


class VocSource(Section):
    """A VOC folder, and the split of it to read."""

    format: Literal["voc"]
    root: Path
    """The folder with Annotations, JPEGImages and ImageSets."""
    split: str | None = None
    """The list of ImageSets/Main, like train; all annotations where it is left out."""


class TfrecordSource(Section):
    """TFRecords in the Object Detection API's schema."""

    format: Literal["tfrecord"]
    path: tuple[str, ...]
    """Files, globs, or shards like train.record-?????-of-00010."""
    label_map: Path | None = None
    """A .pbtxt of names and ids; without one, the records' class texts name the classes."""

    @field_validator("path", mode="before")
    @classmethod
    def _one_is_a_list_too(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class ShapesSource(Section):
    """The embedded data set, made under `root` on first use."""

    format: Literal["shapes"]
    domain: Literal["source", "target"]
    split: Literal["train", "val"]
    root: Path = Path("build/shapes")
    """Where it is drawn."""


Source = Annotated[CocoSource | VocSource | TfrecordSource | ShapesSource, Field(discriminator="format")]


class DataConfig(Section):
    """Where examples come from, and the albumentations transforms of the training examples."""

    train: Source | None = None
    """The examples to train on."""
    evaluate: Source | None = None
    """The examples to score on."""
    class_names: tuple[str, ...] | None = None
    """The classes and their order; the data's own where it is left out."""
    augment: tuple[dict[str, Any], ...] = ()
    """Transforms of albumentations in their order, each {name: HorizontalFlip, p: 0.5}."""
    min_visibility: float = Field(0.0, ge=0, le=1)
    """An object of which less than this part is left after augmentation is dropped."""
