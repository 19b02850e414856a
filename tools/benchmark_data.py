"""The data sets of benchmarks that read files, and what comes of them: batches, and kept features."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import albumentations  # noqa: F401 - now, so that the time to the first step is not that of an import
import command_line
import tensorflow as tf
from example_caches import training_cache

from data.dataset import DetectionDataset
from data.pipeline import evaluation_batches, training_batches
from data.random_images import random_image_dataset
from detector.builder import build_resizer
from detector.config import Config
from detector.feature_cache import FeatureCache
from detector.resizer import to_canvas


def dataset_reader(spec: Mapping[str, Any], config: Config) -> Callable[[], DetectionDataset]:
    """Return what reads the labels; files of random images are drawn now."""
    if spec["data"] == "configured":
        section, key = (
            (config.data.evaluate, "data.evaluate")
            if spec["kind"] in ("evaluate", "infer")
            else (config.data.train, "data.train")
        )
        source = command_line.require_source(section, key)
        return lambda: command_line.read_source(source, config.data.class_names, config.model.num_classes)
    sizes = {key: spec[key] for key in ("images", "height", "width", "classes", "boxes")}
    dataset = random_image_dataset(Path(tempfile.mkdtemp()), **sizes)
    return lambda: dataset


def cache_of(dataset: DetectionDataset, config: Config) -> FeatureCache:
    """Return the cache of frozen features that the configuration asks for."""
    return training_cache(config, dataset, command_line.build_augmentation(config))


def training(dataset: DetectionDataset, config: Config) -> tf.data.Dataset:
    """Return the batches of the training pipeline, without end."""
    return training_batches(
        dataset,
        batch_size=config.train.batch_size,
        resize=to_canvas(build_resizer(config.model)),
        augment=command_line.build_augmentation(config),
        seed=config.train.seed,
        views=config.train.views,
    )


def evaluation(dataset: DetectionDataset, config: Config) -> tf.data.Dataset:
    """Return the batches that an evaluation detects on."""
    return evaluation_batches(
        dataset, batch_size=config.evaluate.batch_size, resize=to_canvas(build_resizer(config.model))
    )
