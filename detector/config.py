"""The configuration of an experiment: its schema, reading it from YAML, and overriding it key by key.

A file in `configs/` states what differs from the defaults here, which are those of the published Faster
R-CNN configurations.  `base:` names another file to start from.  Unknown keys are errors.
"""

import contextlib
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from detector import strict_yaml
from detector.config_section import Section, sections_of
from detector.data_config import DataConfig
from detector.freeze_config import FreezeConfig, FreezeScheduleConfig
from detector.model_config import KeepAspectRatioConfig, ModelConfig
from detector.train_config import TrainConfig


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says which key, what was expected and what came."""


class EvaluateConfig(Section):
    """How to score."""

    batch_size: int = Field(1, ge=1)
    """Images at a time."""


class Config(Section):
    """An experiment: the model, its data, what is frozen, and how it is trained and scored."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    freeze: FreezeConfig = FreezeConfig()
    freeze_schedule: FreezeScheduleConfig = ()
    """A preset, gradual or linear_probe, or what changes later in the run: a list of freeze stages."""
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
        if nearest[0] == key:
            return f"'{key}' goes with another format or kind than the one that is set here: set that, too"
        return f"unknown key '{key}'; nearest: '{nearest[0]}'"
    given = issue.get("input")
    shown = "" if isinstance(given, Mapping) else f", got {given!r}"
    message = issue["msg"].removeprefix("Value error, ")
    return f"{key or 'configuration'}: {message[:1].lower()}{message[1:]}{shown}"


def _known_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, info in section.model_fields.items():
        keys.append(prefix + name)
        for kind in sections_of(info.annotation):
            keys += _known_keys(kind, f"{prefix}{name}.")
    return keys
