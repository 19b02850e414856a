"""Freezes that have a name: gradual unfreezing and linear probing over a run, and matterport's `layers`.

Each makes the selectors that somebody would write by hand, from the rows of a model.
"""

from collections.abc import Sequence

from detector.freeze import resolve
from detector.freeze_config import FreezeConfig, FreezeStageConfig
from detector.selectors import FreezeError, VariableRow, select_each

LAYER_PRESETS = ("heads", "4+", "3+", "all")
# Where the stages at stride 8 and 16 begin, which are ResNet's third and fourth: ResNet, Inception v2, and
# Inception v3 and Inception-ResNet v2.
_BLOCK_STARTS = {"3+": {"conv3", "Mixed_3b", "Mixed_5b"}, "4+": {"conv4", "Mixed_4a", "Mixed_6a"}}


def gradual(
    rows: Sequence[VariableRow], steps: int, own: FreezeConfig | None = None
) -> tuple[FreezeConfig, tuple[FreezeStageConfig, ...]]:
    """Return gradual unfreezing from the top down, in five equal spans.

    The RPN and the predictor; then the tower too; then the feature extractor's last third of stages, its
    second, and all of it (Howard and Ruder, "Universal Language Model Fine-tuning", section 3.3, for a
    detector's parts).

    What the user freezes, `own`, stays frozen throughout.  A span that would train nothing, or the same as
    the one before, falls away, and the others share the run.

    Raises:
        FreezeError: of a selector of `own`, `own` leaves one span, or there are fewer steps than spans.
    """
    own = own or FreezeConfig()
    names = _extractor_stages(rows)
    last_third, second_third = len(names) // 3, 2 * len(names) // 3  # stages, counted from the end
    frozen = _distinct(
        "gradual",
        rows,
        own,
        [
            ("feature_extractor", "box_classifier/tower"),
            ("feature_extractor",),
            (f"feature_extractor[:{names[-last_third - 1]}]",),
            (f"feature_extractor[:{names[-second_third - 1]}]",),
            (),
        ],
        steps,
    )
    starts = [steps * number // len(frozen) for number in range(len(frozen))]
    return _frozen_in(own, frozen[0]), tuple(
        _stage(own, selectors, start) for selectors, start in zip(frozen[1:], starts[1:], strict=True)
    )


def linear_probe(
    rows: Sequence[VariableRow], steps: int, own: FreezeConfig | None = None
) -> tuple[FreezeConfig, tuple[FreezeStageConfig, ...]]:
    """Return linear probing, then fine-tuning: a third for the predictor, the rest for all at a tenth.

    Kumar et al., "Fine-Tuning can Distort Pretrained Features", section 4: the head first, then everything
    at a low rate.  What the user freezes, `own`, stays frozen throughout; raises as `gradual` does.
    """
    own = own or FreezeConfig()
    probe, rest = _distinct("linear_probe", rows, own, [("all_but:box_classifier/predictor",), ()], steps)
    later = _stage(own, rest, max(steps // 3, 1), lr_factor=0.1)
    return _frozen_in(own, probe), (later,)


def _distinct(
    preset: str,
    rows: Sequence[VariableRow],
    own: FreezeConfig,
    frozen: Sequence[tuple[str, ...]],
    steps: int,
) -> list[tuple[str, ...]]:
    """Return those of a preset's stages, by what they freeze, that train more than the one before."""
    # Whether something fresh may be frozen is asked where the schedule is resolved.
    trainable = resolve(rows, own.freeze, own.train_only, unfreeze=own.unfreeze, allow_fresh=True).trained
    thawed = set().union(*select_each(own.unfreeze, rows, "unfreeze").values())
    left: list[tuple[str, ...]] = []
    before: set[str] = set()
    for selectors in frozen:
        still = set().union(*select_each(selectors, rows).values()) - thawed
        trained = set(trainable) - still
        if trained != before:
            left.append(selectors)
            before = trained
    if len(left) < 2:
        given = {"freeze": own.freeze, "train_only": own.train_only, "unfreeze": own.unfreeze}
        said = ", ".join(f"{role} {', '.join(map(repr, texts))}" for role, texts in given.items() if texts)
        raise FreezeError(
            f"freeze_schedule {preset} has one freeze stage left, which is no schedule: what goes with it "
            f"({said}) holds in every stage; leave that out, or the schedule"
        )
    if steps < len(left):
        raise FreezeError(
            f"freeze_schedule {preset} has {len(left)} freeze stages and needs a step for each at least, but "
            f"train.steps is {steps}; raise train.steps"
        )
    return left


def _frozen_in(own: FreezeConfig, selectors: tuple[str, ...]) -> FreezeConfig:
    """Return what the user freezes and a preset's selectors with it; `none` adds nothing to them."""
    given = () if own.freeze == ("none",) else own.freeze
    return own.model_copy(update={"freeze": (*given, *selectors)})


def _stage(
    own: FreezeConfig, selectors: tuple[str, ...], from_step: int, lr_factor: float = 1.0
) -> FreezeStageConfig:
    whole = _frozen_in(own, selectors)
    return FreezeStageConfig(
        from_step=from_step,
        freeze=whole.freeze,
        train_only=whole.train_only,
        unfreeze=whole.unfreeze,
        lr_factor=lr_factor,
    )


def layers_preset(name: str, rows: Sequence[VariableRow]) -> tuple[str, ...]:
    """Return the freeze selectors of matterport's `layers=` presets: what they do not train.

    "heads" trains all but the feature extractor, "4+" its stages at stride 16, too, "3+" those at stride 8,
    "all" everything.
    """
    if name == "heads":
        return ("feature_extractor",)
    if name == "all":
        return ()
    if name not in LAYER_PRESETS:
        raise FreezeError(f"unknown layers {name!r}; expected one of {', '.join(LAYER_PRESETS)}")
    stages = _extractor_stages(rows)
    first = next((i for i, stage in enumerate(stages) if stage in _BLOCK_STARTS[name]), None)
    if not first:
        raise FreezeError(
            f"layers {name!r}: not known where that is in this feature extractor; freeze by stage instead, "
            f"like 'feature_extractor[:{stages[0]}]'; its stages: {stages}"
        )
    return (f"feature_extractor[:{stages[first - 1]}]",)


def _extractor_stages(rows: Sequence[VariableRow]) -> list[str]:
    """Return the names of the feature extractor's stages that have variables, in order."""
    return list(dict.fromkeys(row.path.split("/")[1] for row in rows if row.component == "feature_extractor"))
