"""What `--freeze auto` stands for: the freeze that a diagnosis of the restored detector suggests."""

from collections.abc import Collection, Iterable, Sequence

from detector.builder import build_model
from detector.config import Config
from detector.diagnose import Batch, diagnose
from detector.faster_rcnn import FasterRCNN
from detector.freeze_suggestion import Suggestion, suggest
from detector.selectors import FreezeError
from detector.weights.importing import import_weights

AUTO = "auto"  # in place of selectors


def auto_freeze(model: FasterRCNN, batches: Iterable[Batch], *, restored: Collection[str]) -> Suggestion:
    """Diagnose and suggest: what `--freeze auto` stands for.  Takes and raises what `diagnose` does."""
    return suggest(diagnose(model, batches, restored=restored))


def is_auto(config: Config) -> bool:
    """Whether the configuration leaves the freeze to `choose_freeze`.

    Raises:
        FreezeError: `auto` does not stand alone.
    """
    if AUTO in config.freeze.freeze and len(config.freeze.freeze) > 1:
        others = ", ".join(repr(text) for text in config.freeze.freeze if text != AUTO)
        raise FreezeError(f"freeze 'auto' stands alone, but came with {others}; leave one out")
    return config.freeze.freeze == (AUTO,)


def choose_freeze(
    config: Config, class_names: Sequence[str], batches: Iterable[Batch]
) -> tuple[Config, Suggestion]:
    """Return the configuration with its `auto` replaced by selectors, and why they were chosen.

    Builds and restores a detector of its own, so that the one that trains is as if the selectors had been
    written by hand; the same configuration and batches always give the same.

    Raises:
        ValueError: of the model's, the import's or of `diagnose`.
    """
    model = build_model(config.model, class_names, seed=config.train.seed)
    restore = config.train.restore
    imported = import_weights(model, restore.path, kind=restore.type) if restore.path else None
    suggestion = auto_freeze(model, batches, restored=imported.restored if imported else ())
    # An empty list, and not `none`, which stands alone: presets and schedules add to it.
    selectors = () if suggestion.freeze == ("none",) else suggestion.freeze
    freeze = config.freeze.model_copy(update={"freeze": selectors})
    return config.model_copy(update={"freeze": freeze}), suggestion
