"""The configuration of an experiment: its schema, reading it from YAML, and overriding it key by key.

A file in `configs/` states what differs from the defaults here, which are those of the published Faster
R-CNN configurations.  `base:` names another file to start from.  Unknown keys are errors.
"""

import contextlib
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from detector import strict_yaml
from detector.config_section import Section
from detector.model_config import KeepAspectRatioConfig, ModelConfig


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says which key, what was expected and what came."""


class CocoSource(Section):
    """A COCO JSON file and the folder of its images."""

    format: Literal["coco"]
    annotations: Path
    images: Path


class VocSource(Section):
    """A VOC folder, and the split of `ImageSets/Main` to read (all annotations where it is left out)."""

    format: Literal["voc"]
    root: Path
    split: str | None = None


class TfrecordSource(Section):
    """TFRecords in the Object Detection API's schema: files, globs or shards, and their label map."""

    format: Literal["tfrecord"]
    path: tuple[str, ...]
    label_map: Path | None = None

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


Source = Annotated[CocoSource | VocSource | TfrecordSource | ShapesSource, Field(discriminator="format")]


class DataConfig(Section):
    """Where examples come from, and the albumentations transforms of the training examples."""

    train: Source | None = None
    evaluate: Source | None = None
    class_names: tuple[str, ...] | None = None
    augment: tuple[dict[str, Any], ...] = ()
    # An object of which less than this part is left after augmentation is dropped.
    min_visibility: float = Field(0.0, ge=0, le=1)


# What one kind of optimizer reads and the other does not.
_CONSTANTS = {"sgd": ("momentum", "nesterov"), "adamw": ("beta_1", "beta_2", "epsilon")}


class OptimizerConfig(Section):
    """SGD with momentum, or AdamW (whose decay is decoupled and leaves biases and BatchNorm alone)."""

    kind: Literal["sgd", "adamw"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(0.0, ge=0)
    beta_1: float = Field(0.9, ge=0, lt=1)
    beta_2: float = Field(0.999, ge=0, lt=1)
    epsilon: float = Field(1e-7, gt=0)

    @model_validator(mode="after")
    def _constants_have_their_optimizer(self) -> "OptimizerConfig":
        if self.kind == "sgd" and self.weight_decay:
            raise ValueError(
                "weight_decay goes with kind: adamw; for sgd set model.rpn.l2 and box_classifier.l2"
            )
        other = "adamw" if self.kind == "sgd" else "sgd"
        for name in _CONSTANTS[other]:
            # A resolved configuration states the defaults of both.
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} goes with kind: {other}; {self.kind} has none: leave it out")
        return self


class LearningRateConfig(Section):
    """The learning rate by step: linear warmup from `warmup_start`, then constant, cosine to 0, or steps."""

    schedule: Literal["constant", "cosine", "step"] = "cosine"
    base: float = Field(0.01, gt=0)
    warmup_steps: int = Field(0, ge=0)
    warmup_start: float = Field(0.0, ge=0)
    # The step at which the cosine reaches 0; the run's last step where it is left out.
    total_steps: int | None = Field(None, ge=1)
    # `step`: from boundaries[i] on the rate is values[i].
    boundaries: tuple[int, ...] = ()
    values: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _steps_have_values(self) -> "LearningRateConfig":
        if len(self.boundaries) != len(self.values):
            raise ValueError(f"{len(self.boundaries)} boundaries need as many values, not {len(self.values)}")
        if list(self.boundaries) != sorted(set(self.boundaries)):
            raise ValueError(f"boundaries must rise: {list(self.boundaries)}")
        if bool(self.boundaries) != (self.schedule == "step"):
            raise ValueError(
                "boundaries and values go with schedule: step, and with it alone; another has [] for both"
            )
        # As `cosine_decay_with_warmup`; `manual_stepping` may begin higher.
        if self.warmup_steps and self.schedule != "step" and self.warmup_start > self.base:
            raise ValueError(
                f"warmup_start {self.warmup_start:g} is above base {self.base:g}, which the warmup rises to; "
                "lower it"
            )
        return self


class RestoreConfig(Section):
    """The checkpoint to start from: this package's or one of those that `tools/import_weights.py` reads."""

    path: Path | None = None
    # What to take from it, the Object Detection API's `fine_tune_checkpoint_type`; None takes all that fits.
    type: Literal["classification", "detection", "full"] | None = None


class TrainConfig(Section):
    """How long and how to train."""

    steps: int = Field(1000, ge=1)
    batch_size: int = Field(1, ge=1)
    seed: int = Field(0, ge=0, lt=2**31)
    optimizer: OptimizerConfig = OptimizerConfig()
    learning_rate: LearningRateConfig = LearningRateConfig()
    # {selector: factor}: scales the steps of what it matches; the last one that matches counts.  Mappings
    # add up over a `base:`; null takes back what it has.
    lr_factors: dict[str, float] = Field(default_factory=dict)
    # Gradients are scaled so that their joint norm, over what is trained, is at most this.
    clip_norm: float | None = Field(10.0, gt=0)
    restore: RestoreConfig = RestoreConfig()
    evaluate_every: int | None = Field(None, ge=1)
    evaluate_at_start: bool = True
    checkpoint_every: int = Field(500, ge=1)
    keep_checkpoints: int = Field(3, ge=1)
    # `features`: what comes before all that moves is computed once for each example, kept, and trained from.
    cache: Literal["none", "features"] = "none"
    # Augmentations of an image, shown in turn from epoch to epoch; a new one each time where it is left out.
    views: int | None = Field(None, ge=1)
    cache_folder: Path = Path("build/features")
    cache_limit_gb: float = Field(20.0, gt=0)
    cache_storage: Literal["float32", "float16"] = "float32"
    # Selectors: stages of the feature extractor or the tower that keep their input alone and run again when
    # their gradient is due (gradient checkpointing).  Less memory, more time, the same result.
    recompute: tuple[str, ...] = ()
    # Stop after this many evaluations without a better AP.
    patience: int | None = Field(None, ge=1)
    log_every: int = Field(10, ge=1)
    # Same bits on every run on one machine.  On a CPU it is also more exact: without it TensorFlow 2.20 sums
    # the gradient of crop_and_resize in threads that overwrite each other (a relative error of 1e-3).
    deterministic: bool = True

    @field_validator("lr_factors", mode="before")
    @classmethod
    def _none_is_empty(cls, value: Any) -> Any:
        return {} if value is None else value

    @model_validator(mode="after")
    def _factors_move_something(self) -> "TrainConfig":
        for selector, factor in self.lr_factors.items():
            if factor == 0:
                raise ValueError(
                    f"lr_factors: {selector}: 0 would compute steps and not take them; freeze it"
                )
            if factor < 0:
                raise ValueError(f"lr_factors: {selector}: expected a positive factor, got {factor}")
        return self


class FreezeConfig(Section):
    """Selectors: what they freeze, what alone they leave trainable, and what trains all the same."""

    freeze: tuple[str, ...] = ()
    train_only: tuple[str, ...] = ()
    unfreeze: tuple[str, ...] = ()
    allow_fresh: bool = False
    # matterport's presets: what of the feature extractor trains.
    layers: Literal["heads", "4+", "3+", "all"] | None = None


class FreezeStageConfig(Section):
    """From a step or an epoch on: other selectors than before, or some to `unfreeze` in addition.

    An epoch takes images / batch size steps, whole or not; a stage starts at the step nearest to its epoch.
    """

    from_step: int | None = Field(None, ge=1)
    from_epoch: float | None = Field(None, gt=0)
    freeze: tuple[str, ...] | None = None
    train_only: tuple[str, ...] | None = None
    unfreeze: tuple[str, ...] = ()
    lr_factor: float = Field(1.0, gt=0)
    warmup_steps: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _starts_once(self) -> "FreezeStageConfig":
        if (self.from_step is None) == (self.from_epoch is None):
            raise ValueError("a freeze stage starts at from_step or at from_epoch: give one of them")
        return self


# A preset's name, or a list of stages; the tags keep the errors of the one out of those of the other.
FreezeScheduleConfig = Annotated[
    Annotated[Literal["gradual", "linear_probe"], Tag("preset")]
    | Annotated[tuple[FreezeStageConfig, ...], Tag("stages")],
    Discriminator(lambda value: "preset" if isinstance(value, str) else "stages"),
]


class EvaluateConfig(Section):
    """How to score."""

    batch_size: int = Field(1, ge=1)


class Config(Section):
    """An experiment."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    freeze: FreezeConfig = FreezeConfig()
    freeze_schedule: FreezeScheduleConfig = ()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _examples_can_be_cached(self) -> "Config":
        train, resizer = self.train, self.model.resizer
        if train.cache == "none":
            return self
        if self.data.augment and train.views is None:
            raise ValueError(
                "train.cache: features keeps a fixed number of augmentations of each image: set train.views"
            )
        if isinstance(resizer, KeepAspectRatioConfig) and not resizer.pad and train.batch_size > 1:
            raise ValueError(
                "train.cache: features with train.batch_size above 1 needs one canvas for all images: set "
                "model.resizer.pad, or kind: fixed_shape"
            )
        return self

    def to_yaml(self) -> str:
        """Return the whole configuration, defaults included, as YAML that `load` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file and override single keys.

    Args:
        path: a YAML file; None for the defaults.
        overrides: `key=value` texts, with dotted keys and YAML values: `train.steps=500`.

    Raises:
        ConfigError: naming the file, the key, and the nearest known key.
    """
    return override(_read(Path(path)) if path is not None else {}, overrides, str(path or "configuration"))


def override(values: Mapping[str, Any], overrides: Sequence[str], origin: str) -> Config:
    """Override single keys of a nested mapping, then check it; `origin` names it in errors."""
    for text in overrides:
        values = _merge(values, _parse_override(text))
    return validate(values, origin)


def validate(values: Mapping[str, Any], origin: str) -> Config:
    """Check a nested mapping against the schema; `origin` names it in errors."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{origin}: {_explain(issue)}" for issue in error.errors())) from None


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in (earlier.resolve() for earlier in seen):
        raise ConfigError(f"{path}: its `base:` leads back to itself: {' -> '.join(map(str, (*seen, path)))}")
    if not path.is_file():
        raise ConfigError(f"no configuration file {path}")
    try:
        values = strict_yaml.load(path.read_text(encoding="utf-8-sig")) or {}
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8, as YAML is: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, got {type(values).__name__}")
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: expected the name of one file, got {base!r}")
    return _merge(_read(path.parent / base, (*seen, path)), values)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `above` over `below`, mapping by mapping; one with another `kind` or `format` replaces the old."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not _changes_kind(old, value):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def _changes_kind(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return any(key in new and key in old and new[key] != old[key] for key in ("kind", "format"))


def _parse_override(text: str) -> dict[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set takes key=value, like train.steps=500; got {text!r}")
    try:
        nested: Any = strict_yaml.load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {key}: not a YAML value: {value!r}") from None
    # YAML 1.1 reads 1e-3 as text.
    if isinstance(nested, str):
        with contextlib.suppress(ValueError):
            nested = float(nested)
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return nested


def _explain(issue: Mapping[str, Any]) -> str:
    location = [str(part) for part in issue["loc"]]
    # The tags of discriminated unions are part of pydantic's location, but no key of the file.
    known_tags = {"fixed_shape", "keep_aspect_ratio", "coco", "voc", "tfrecord", "shapes", "preset", "stages"}
    location = [part for part in location if part not in known_tags]
    key = ".".join(location)
    if issue["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(key, _known_keys(Config), n=1, cutoff=0.0)
        return f"unknown key '{key}'; nearest: '{nearest[0]}'"
    given = issue.get("input")
    shown = "" if isinstance(given, Mapping) else f", got {given!r}"
    message = issue["msg"].removeprefix("Value error, ")
    return f"{key or 'configuration'}: {message[:1].lower()}{message[1:]}{shown}"


def _known_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, info in section.model_fields.items():
        keys.append(prefix + name)
        for kind in _sections_of(info.annotation):
            keys += _known_keys(kind, f"{prefix}{name}.")
    return keys


def _sections_of(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [kind for part in getattr(annotation, "__args__", ()) for kind in _sections_of(part)]
