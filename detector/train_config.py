"""The schema of training: how long, how, and from what."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from detector.config_section import Section

# What one kind of optimizer reads and the other does not.
_CONSTANTS = {"sgd": ("momentum", "nesterov"), "adamw": ("beta_1", "beta_2", "epsilon")}


class OptimizerConfig(Section):
    """SGD with momentum, or AdamW (whose decay is decoupled and leaves biases and BatchNorm alone)."""

    kind: Literal["sgd", "adamw"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of sgd."""
    nesterov: bool = False
    """Of sgd."""
    weight_decay: float = Field(0.0, ge=0)
    """Of adamw, decoupled; biases and BatchNorm are left alone.  For sgd see the l2 of the model's heads."""
    beta_1: float = Field(0.9, ge=0, lt=1)
    """Of adamw."""
    beta_2: float = Field(0.999, ge=0, lt=1)
    """Of adamw."""
    epsilon: float = Field(1e-7, gt=0)
    """Of adamw."""

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
    """What comes after the warmup: the same rate, a cosine to 0, or steps."""
    base: float = Field(0.01, gt=0)
    """The rate after the warmup."""
    warmup_steps: int = Field(0, ge=0)
    """How long the rate rises to `base`."""
    warmup_start: float = Field(0.0, ge=0)
    """Where it rises from."""
    total_steps: int | None = Field(None, ge=1)
    """The step at which the cosine reaches 0; the run's last step where it is left out."""
    boundaries: tuple[int, ...] = ()
    """Of steps: from boundaries[i] on the rate is values[i]."""
    values: tuple[float, ...] = ()
    """Of steps, one for each boundary."""

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
    """A checkpoint, a run, or weights of another project; training starts from scratch without one."""
    type: Literal["classification", "detection", "full"] | None = None
    """What to take, as the Object Detection API's `fine_tune_checkpoint_type`; all that fits if left out."""


class TrainConfig(Section):
    """How long and how to train."""

    steps: int = Field(1000, ge=1)
    """How many steps to take."""
    batch_size: int = Field(1, ge=1)
    """Images a step."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Of initial values, the order of the images, their augmentation, and what a step draws."""
    optimizer: OptimizerConfig = OptimizerConfig()
    learning_rate: LearningRateConfig = LearningRateConfig()
    lr_factors: dict[str, float] = Field(default_factory=dict)
    """{selector: factor}: scales the steps of what it matches; the last one that matches counts.  Mappings
    add up over a `base:`; null takes back what it has."""
    clip_norm: float | None = Field(10.0, gt=0)
    """Gradients are scaled so that their joint norm, over what is trained, is at most this; null: none is."""
    restore: RestoreConfig = RestoreConfig()
    evaluate_every: int | None = Field(None, ge=1)
    """Steps between evaluations; at the end alone where it is left out."""
    evaluate_at_start: bool = True
    """Whether to score before the first step, too."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps between checkpoints; a run that a crash ends goes on from the last."""
    keep_checkpoints: int = Field(3, ge=1)
    """How many checkpoints are kept, beside the best."""
    cache: Literal["none", "features"] = "none"
    """features: what comes before all that moves is computed once for each example, and trained from."""
    views: int | None = Field(None, ge=1)
    """Augmentations of an image, shown in turn from epoch to epoch; a new one each time if left out."""
    cache_folder: Path = Path("build/features")
    """Where features are kept; runs share it."""
    cache_limit_gb: float = Field(20.0, gt=0)
    """The budget of that folder, GB; those longest unused go for new ones."""
    cache_storage: Literal["float32", "float16"] = "float32"
    """float16 takes half the room, at a relative error of up to 5e-4."""
    recompute: tuple[str, ...] = ()
    """Selectors: stages of the feature extractor or the tower that keep their input alone and run again when
    their gradient is due (gradient checkpointing).  Less memory, more time, the same result."""
    patience: int | None = Field(None, ge=1)
    """Stop after this many evaluations without a better AP; of a freeze schedule those of the last stage
    count, since where an earlier one gets no further the next one is what helps."""
    log_every: int = Field(10, ge=1)
    """Steps between lines of the metrics."""
    # More exact, too: without it TensorFlow 2.20 sums the gradient of crop_and_resize in threads that
    # overwrite each other (a relative error of 1e-3).
    deterministic: bool = True
    """The same bits on every run on one machine's CPU; off on a GPU, for which TensorFlow has no
    deterministic gradient of crop_and_resize."""

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
