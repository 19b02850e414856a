"""What to measure: a benchmark's file.

It names a configuration, what is set in it, and workloads.  A workload's own keys are those of `Workload`;
everything else about it is a key of the configuration, in `set`.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError, model_validator

from detector import strict_yaml
from detector.config import ConfigError
from detector.config_section import Section

Kind = Literal["train", "infer", "input", "evaluate", "startup"]

PEAKS = {"float32": "float32 peak", "bfloat16": "bfloat16 peak"}
"""{precision: name of the worker that measures the machine's matrix product in it}"""


class Workload(Section):
    """One thing to measure.

    `batch_size` None takes the configuration's; `size` is a square canvas, pixels.  `data`: random images, or
    those that the configuration names.  `images`: how many of them an evaluation has.  `gflop`: operations of
    one image, where they are to be counted otherwise than by this package.  `reference`: the workload whose
    time per image this one's is compared with.
    """

    name: str = Field(min_length=1)
    kind: Kind
    set: tuple[str, ...] = ()
    batch_size: int | None = Field(None, ge=1)
    size: int | None = Field(None, ge=33)
    data: Literal["random", "configured"] = "random"
    images: int | None = Field(None, ge=1)
    saved_model: bool = False
    gflop: float | None = Field(None, gt=0)
    reference: str | None = None
    repeats: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _keys_go_with_the_kind(self) -> "Workload":
        if self.images is not None and (self.kind != "evaluate" or self.data != "random"):
            raise ValueError("images goes with kind: evaluate and data: random")
        if self.saved_model and self.kind != "infer":
            raise ValueError("saved_model goes with kind: infer")
        if self.gflop is not None and self.kind not in ("train", "infer"):
            raise ValueError("gflop goes with kind: train and kind: infer")
        if self.kind == "startup" and self.data == "random":
            raise ValueError(
                "startup runs tools/train.py on the configuration's own data: set data: configured"
            )
        if self.reference == self.name:
            raise ValueError("a workload cannot be its own reference")
        return self


class Benchmark(Section):
    """A benchmark's file.

    `classes` and `boxes` are those of random images.  `starts`: so often the workers are started anew, for
    `rounds` rounds each time.  `rounds_of`: "all" workers are there at once and take
    turns; "pairs" has each workload alone with its reference, where memory is short.  `against`: peers, see
    `tools/benchmark.py`.
    """

    config: Path | None = None
    set: tuple[str, ...] = ()
    classes: int = Field(90, ge=1)
    boxes: int = Field(8, ge=1)
    rounds: int = Field(8, ge=1)
    starts: int = Field(1, ge=1)
    repeats: int = Field(5, ge=1)
    rounds_of: Literal["all", "pairs"] = "all"
    against: tuple[str, ...] = ()
    workloads: tuple[Workload, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_there_once(self) -> "Benchmark":
        names = [workload.name for workload in self.workloads]
        twice = sorted({name for name in names if names.count(name) > 1 or name in PEAKS.values()})
        if twice:
            raise ValueError(f"two workloads are called {twice[0]!r}; give every one a name of its own")
        for workload in self.workloads:
            if workload.reference is not None and workload.reference not in names:
                raise ValueError(
                    f"{workload.name}: no workload is called {workload.reference!r}, its reference; "
                    f"there are {', '.join(names)}"
                )
        return self


def read_benchmark(path: Path) -> Benchmark:
    """Read a benchmark's file; its `config` is relative to it.

    Raises ConfigError naming the file and the key.
    """
    if not path.is_file():
        raise ConfigError(f"no benchmark {path}")
    try:
        values = strict_yaml.load(path.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping with workloads, got {type(values).__name__}")
    benchmark = _validated(Benchmark, values, str(path))
    if benchmark.config is None:
        return benchmark
    return benchmark.model_copy(update={"config": path.parent / benchmark.config})


def parse_workloads(texts: Sequence[str]) -> Benchmark:
    """Return the benchmark of several `--workload` texts, see `parse_workload`; raises as that does."""
    return _validated(Benchmark, {"workloads": [parse_workload(text) for text in texts]}, "--workload")


def amended(benchmark: Benchmark, changes: Mapping[str, Any]) -> Benchmark:
    """Return the benchmark with other values for some keys; raises ConfigError if they cannot be used."""
    return _validated(Benchmark, {**benchmark.model_dump(), **changes}, "command line")


def parse_workload(text: str) -> Workload:
    """Return the workload of `--workload 'NAME=KIND KEY=VALUE …'`; a dotted key is the configuration's.

    Raises ConfigError if it is not one.
    """
    name, separator, rest = text.partition("=")
    try:
        kind, *settings = shlex.split(rest)
    except ValueError:
        kind, settings = "", []
    if not separator or kind not in get_args(Kind):
        raise ConfigError(
            f"--workload takes NAME=KIND KEY=VALUE …, where KIND is one of {', '.join(get_args(Kind))}, "
            f"like 'frozen=train freeze.freeze=[box_classifier]'; got {text!r}"
        )
    values: dict[str, Any] = {"name": name.strip(), "kind": kind, "set": []}
    for setting in settings:
        key, _, value = setting.partition("=")
        if "." in key:
            values["set"].append(setting)
        else:
            values[key] = strict_yaml.load(value) if value else None
    return _validated(Workload, values, f"--workload {text}")


def _validated(section: type[Any], values: Mapping[str, Any], origin: str) -> Any:
    try:
        return section.model_validate(values)
    except ValidationError as error:
        lines = [
            f"{origin}: {'.'.join(map(str, issue['loc']))}{': ' if issue['loc'] else ''}"
            f"{issue['msg'].removeprefix('Value error, ')}"
            for issue in error.errors()
        ]
        raise ConfigError("\n".join(lines)) from None
