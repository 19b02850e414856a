"""The caches of frozen features that a configuration asks for, of the examples of its data sets."""

import hashlib
import json
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import tensorflow as tf

    from data.augment import Augmentation
    from data.dataset import DetectionDataset
    from detector.config import Config
    from detector.feature_cache import ExampleViews, FeatureCache


def training_cache(
    config: "Config", train_set: "DetectionDataset", augment: "Augmentation | None"
) -> "FeatureCache":
    """Return the cache that the configuration asks for, of the views of the training examples."""
    import albumentations

    from data.pipeline import training_entry, view_batches
    from detector.builder import build_resizer
    from detector.feature_cache import ExampleViews
    from detector.resizer import to_canvas

    settings, resizer = config.train, build_resizer(config.model)
    views = settings.views or 1

    def batches() -> "tf.data.Dataset":
        return view_batches(
            train_set,
            views=views,
            batch_size=settings.batch_size if _has_one_canvas(config) else 1,
            resize=to_canvas(resizer),
            augment=augment,
        )

    def entry_at(position: int) -> int:
        return training_entry(position, len(train_set), settings.seed, views)

    key = _key(
        config,
        train_set,
        augment=[config.data.augment, config.data.min_visibility, albumentations.__version__],
        views=views,
    )
    views_of = ExampleViews(batches, len(train_set) * views, key, entry_at)
    return _cache(config, views_of, config.train.cache_storage)


def evaluation_cache(
    config: "Config", evaluation_set: "DetectionDataset", batches: "tf.data.Dataset"
) -> "FeatureCache | None":
    """Return the cache of the examples to evaluate on, in the folder and the budget of training's.

    None where a batch pads canvases to its largest: what is computed then depends on the batch.
    """
    from detector.feature_cache import ExampleViews

    if not _has_one_canvas(config) and config.evaluate.batch_size > 1:
        return None
    key = _key(config, evaluation_set)
    # In full: scores are those of the model as it is exported.
    return _cache(config, ExampleViews(lambda: batches, len(evaluation_set), key), "float32")


def _has_one_canvas(config: "Config") -> bool:
    from detector.builder import build_resizer

    return None not in build_resizer(config.model).canvas_hw


def _key(config: "Config", dataset: "DetectionDataset", **more: object) -> str:
    made_of = {"examples": dataset.digest(), "resizer": config.model.resizer.model_dump(mode="json"), **more}
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def _cache(config: "Config", views: "ExampleViews", storage: Literal["float32", "float16"]) -> "FeatureCache":
    from detector.feature_cache import FeatureCache

    return FeatureCache(
        config.train.cache_folder,
        views,
        limit_bytes=int(config.train.cache_limit_gb * 1e9),
        storage=storage,
        model_config=config.model.model_dump(mode="json"),
    )
