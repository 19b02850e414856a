"""From a configuration and class names to a model with its starting weights and its freeze schedule."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detector.builder import build_model
from detector.config import Config
from detector.faster_rcnn import FasterRCNN
from detector.freeze import RESTORE, FreezePlan, rows_of
from detector.freeze_presets import gradual, layers_preset, linear_probe
from detector.freeze_schedule import FreezeSchedule, resolve_schedule
from detector.provenance import provenance_of
from detector.selectors import VariableRow
from detector.weights.importing import ImportReport, import_weights
from detector.weights.object_detection_api import api_names

# Instead of RESTORE, where the file has them and the type leaves them there.
_RESTORE_ALL = (
    "set train.restore.type=full, which restores the RPN, and a predictor of as many classes (detection "
    "restores neither)"
)


@dataclass(frozen=True)
class Experiment:
    """A model ready to train: its freeze schedule is resolved, not yet applied.

    `imported` says what was restored from where; None if training starts from scratch.
    """

    model: FasterRCNN
    schedule: FreezeSchedule
    imported: ImportReport | None

    @property
    def plan(self) -> FreezePlan:
        """The plan that training starts with."""
        return self.schedule.stages[0].plan

    @property
    def provenance(self) -> dict[str, dict[str, Any]]:
        """Per component where its values came from."""
        if self.imported is not None:
            return self.imported.provenance()
        return provenance_of([], [row.path for row in self.plan.rows])


def prepare(config: Config, class_names: Sequence[str], images: int | None = None) -> Experiment:
    """Build the model, restore what the configuration names, and resolve its freeze schedule.

    `images` is the size of the training set, needed where a freeze stage starts at an epoch.

    Raises:
        ValueError: of the model's, the import's or the plan's; each says what to do.
    """
    model = build_model(config.model, class_names, seed=config.train.seed)
    restore = config.train.restore
    imported = import_weights(model, restore.path, kind=restore.type) if restore.path else None
    rows = rows_of(model.components, imported.restored if imported else (), api_names(model))
    return Experiment(model, schedule_of(config, rows, imported is not None, images), imported)


def schedule_of(
    config: Config, rows: Sequence[VariableRow], is_restored: bool, images: int | None = None
) -> FreezeSchedule:
    """Resolve a configuration's freeze schedule against the rows of its model.

    `is_restored` says whether a checkpoint gave the model its values; `images` is as in `prepare`, and so are
    the errors.
    """
    batch_norm = config.model.batch_norm
    if batch_norm == "auto":
        # A few images a step make poor statistics: restored ones are kept; scratch has to make its own.
        batch_norm = "fixed" if is_restored else "update"
    first, later = config.freeze, config.freeze_schedule
    if first.layers is not None:
        first = first.model_copy(update={"freeze": (*first.freeze, *layers_preset(first.layers, rows))})
    if isinstance(later, str):
        preset = gradual if later == "gradual" else linear_probe
        first, later = preset(rows, config.train.steps, first)
    return resolve_schedule(
        rows,
        first,
        later,
        batch_norm=batch_norm,
        steps=config.train.steps,
        # Batches reach over an epoch's end, so an epoch need not have a whole number of steps.
        steps_per_epoch=images / config.train.batch_size if images else None,
        remedy=_RESTORE_ALL if config.train.restore.type == "detection" else RESTORE,
    )
