"""The schema of freezing: what is frozen, and what changes as a run goes on."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from detector.config_section import Section


class FreezeConfig(Section):
    """Selectors: what they freeze, what alone they leave trainable, and what trains all the same."""

    freeze: tuple[str, ...] = ()
    """Freezes what these match (`--freeze`)."""
    train_only: tuple[str, ...] = ()
    """Freezes what none of these matches (`--train-only`)."""
    unfreeze: tuple[str, ...] = ()
    """Trains what these match, whatever `freeze` says."""
    allow_fresh: bool = False
    """Lets variables be frozen that no checkpoint gave a value (`--allow-fresh`)."""
    layers: Literal["heads", "4+", "3+", "all"] | None = None
    """What of the feature extractor trains, by matterport's presets: nothing, its stages from the fourth or
    the third block on, or all (`--layers`)."""


class FreezeStageConfig(Section):
    """From a step or an epoch on: other selectors than before, or some to `unfreeze` in addition.

    An epoch takes images / batch size steps, whole or not; a stage starts at the step nearest to its epoch.
    """

    from_step: int | None = Field(None, ge=1)
    """The step it starts at."""
    from_epoch: float | None = Field(None, gt=0)
    """The epoch it starts at, in place of a step."""
    freeze: tuple[str, ...] | None = None
    """Takes the place of the freeze so far."""
    train_only: tuple[str, ...] | None = None
    """Takes the place of the selectors so far."""
    unfreeze: tuple[str, ...] = ()
    """Trains in addition."""
    lr_factor: float = Field(1.0, gt=0)
    """Scales the learning rate from there on."""
    warmup_steps: int = Field(0, ge=0)
    """How long the rate rises from 0 there."""

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
