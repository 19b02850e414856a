"""What a sweep trains: its variants, from a file or from the command line.

Pure: nothing is trained, and nothing read but the sweep's own file.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator

from detector import strict_yaml
from detector.config import ConfigError
from detector.config_section import Section
from detector.freeze_config import FreezeConfig, FreezeScheduleConfig, FreezeStageConfig
from detector.selectors import split_selectors

REFERENCE = "none"


class Variant(FreezeConfig):
    """One freeze of a sweep, or one schedule of freezes; its name is also its folder's.

    What else it takes is what a configuration's `freeze` and `freeze_schedule` take, and `set`: keys of the
    configuration that are other than in the variants it is compared with (`model.precision=bfloat16`).
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$")
    freeze_schedule: FreezeScheduleConfig = ()
    set: tuple[str, ...] = ()

    @field_validator("freeze", "train_only", "unfreeze", mode="before")
    @classmethod
    def _selectors(cls, value: Any) -> Any:
        return tuple(split_selectors(value)) if value else ()

    @property
    def options(self) -> list[str]:
        """The variant as options of `tools/train.py`."""
        options = [word for selector in self.freeze for word in ("--freeze", selector)]
        options += [word for selector in self.train_only for word in ("--train-only", selector)]
        if self.layers:
            options += ["--layers", self.layers]
        if self.unfreeze:
            options += ["--set", f"freeze.unfreeze={_flow_yaml(list(self.unfreeze))}"]
        options += _schedule_options(self.freeze_schedule)
        options += [word for setting in self.set for word in ("--set", setting)]
        return (options or ["--freeze", "none"]) + (["--allow-fresh"] if self.allow_fresh else [])


class SweepConfig(Section):
    """A sweep's file: the configuration to start from, what is set in it, and the variants."""

    config: Path | None = None
    set: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = ()


def is_sweep(path: Path) -> bool:
    """Whether a YAML file lists variants; any other is the configuration of one experiment."""
    try:
        values = strict_yaml.load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(values, dict) and "variants" in values


def read_sweep(path: Path) -> SweepConfig:
    """Read a sweep's file; its `config` is relative to it.

    Raises ConfigError naming the file and the key.
    """
    values = strict_yaml.load(path.read_text(encoding="utf-8-sig"))
    try:
        sweep = SweepConfig.model_validate(values)
    except ValidationError as error:
        lines = []
        for issue in error.errors():
            # The tags of a schedule's two forms are part of pydantic's location, but no key of the file.
            key = ".".join(str(part) for part in issue["loc"] if part not in ("preset", "stages"))
            lines.append(f"{path}: {key}: {issue['msg'].removeprefix('Value error, ')}")
        raise ConfigError("\n".join(lines)) from None
    return sweep.model_copy(update={"config": path.parent / sweep.config}) if sweep.config else sweep


def parse_variant(text: str) -> Variant:
    """Return the variant of `--variant name=selectors`; raises ConfigError if it is not one."""
    name, separator, selectors = text.partition("=")
    if not separator or not selectors:
        raise ConfigError(f"--variant takes name=selectors, like rpn=rpn; got {text!r}")
    try:
        return Variant(name=name.strip(), freeze=(selectors,))
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"--variant {text}: {reason}") from None


def with_reference(variants: Sequence[Variant]) -> list[Variant]:
    """Return the variants with full fine-tuning, which all are compared with, first.

    Raises ConfigError for two of one name, and for a `none` that freezes something.
    """
    names = [variant.name for variant in variants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two variants are called {twice[0]!r}; give every variant a name of its own")
    reference = next((variant for variant in variants if variant.name == REFERENCE), None)
    if reference is None:
        reference = Variant(name=REFERENCE, freeze=("none",))
    elif reference.options != ["--freeze", "none"]:
        raise ConfigError(
            f"the variant {REFERENCE!r} is full fine-tuning, which the others are compared with; "
            "call one that freezes something otherwise"
        )
    return [reference, *(variant for variant in variants if variant.name != REFERENCE)]


def _schedule_options(schedule: str | tuple[FreezeStageConfig, ...]) -> list[str]:
    if isinstance(schedule, str):
        return [f"--{schedule.replace('_', '-')}"]
    if all(_only_unfreezes(stage) for stage in schedule):
        return [
            word
            for stage in schedule
            for word in ("--unfreeze-at", f"{stage.from_step}:{','.join(stage.unfreeze)}")
        ]
    stages = [stage.model_dump(mode="json", exclude_defaults=True) for stage in schedule]
    return ["--set", f"freeze_schedule={_flow_yaml(stages)}"]


def _only_unfreezes(stage: FreezeStageConfig) -> bool:
    """Whether `--unfreeze-at` can say all of it: a step and selectors that may be joined by commas."""
    if not stage.from_step or not stage.unfreeze:
        return False
    return (
        stage == FreezeStageConfig(from_step=stage.from_step, unfreeze=stage.unfreeze)
        and tuple(split_selectors(",".join(stage.unfreeze))) == stage.unfreeze
    )


def _flow_yaml(value: Any) -> str:
    """Return `value` as YAML on one line, for `--set`."""
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf).strip()
