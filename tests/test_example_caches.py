"""Which configurations share a cache of features: those whose examples are the same, and no others."""

import dataclasses

import command_line
import pytest
from example_caches import evaluation_cache, training_cache

from data.random_images import random_image_dataset

VIEWS = ["train.cache=features", "train.views=2", "data.augment=[{name: HorizontalFlip, p: 0.5}]"]
UNPADDED = "model.resizer={kind: keep_aspect_ratio, min_dimension: 64, max_dimension: 96}"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    return random_image_dataset(folder, images=3, height=40, width=48, classes=2, boxes=1)


@pytest.fixture
def training_key(tiny_config, dataset):
    """Return a function from overrides to the key of the training examples."""

    def key(*overrides, examples=dataset):
        config = tiny_config(*VIEWS, *overrides)
        return training_cache(config, examples, command_line.build_augmentation(config))._views.key

    return key


@pytest.fixture
def evaluation_key(tiny_config, dataset):
    """Return a function from overrides to the key of the examples to evaluate on."""

    def key(*overrides, examples=dataset):
        return evaluation_cache(tiny_config(*overrides), examples, [])._views.key

    return key


@pytest.mark.parametrize("which", ["training_key", "evaluation_key"])
def test_other_examples_or_another_canvas_are_another_key(which, dataset, request):
    key = request.getfixturevalue(which)
    first, *rest = dataset.examples
    moved = dataclasses.replace(first, boxes_yxyx=first.boxes_yxyx + 1)
    other_image = dataclasses.replace(first, source=rest[0].source)
    keys = [
        key(),
        key("model.resizer.width=96"),
        key("model.resizer={kind: keep_aspect_ratio, min_dimension: 64, max_dimension: 64, pad: true}"),
        key(examples=dataclasses.replace(dataset, examples=(moved, *rest))),
        key(examples=dataclasses.replace(dataset, examples=(other_image, *rest))),
        key(examples=dataclasses.replace(dataset, examples=(*rest, first))),
    ]
    assert len(set(keys)) == len(keys)
    assert key("train.steps=7", "train.seed=3", "train.batch_size=1", "evaluate.batch_size=2") == keys[0]


def test_other_augmentations_are_another_key(training_key, evaluation_key, monkeypatch):
    other_augmentations = [
        "train.views=3",
        "data.augment=[{name: HorizontalFlip, p: 0.6}]",
        "data.augment=[]",
        "data.min_visibility=0.4",
    ]
    keys = [training_key(), *map(training_key, other_augmentations)]
    monkeypatch.setattr("albumentations.__version__", "another")
    keys.append(training_key())
    assert len(set(keys)) == len(keys)
    # Which do not matter where nothing is augmented.
    assert len({evaluation_key(), *map(evaluation_key, other_augmentations)}) == 1


def test_every_view_is_an_entry_and_every_image_to_evaluate_on(tiny_config, dataset):
    config = tiny_config(*VIEWS, "train.cache_storage=float16", "train.cache_limit_gb=0.5")
    training = training_cache(config, dataset, command_line.build_augmentation(config))
    evaluation = evaluation_cache(config, dataset, [])
    assert training._views.entries == 6 and evaluation._views.entries == 3
    assert sorted(training._views.entry_at(position) for position in range(6)) == list(range(6))
    assert evaluation._views.entry_at is None
    assert (training._storage, evaluation._storage) == ("float16", "float32")
    assert training._caches._limit == evaluation._caches._limit == 5 * 10**8


def test_canvases_of_several_sizes_are_kept_one_by_one_or_not_at_all(tiny_config, dataset):
    config = tiny_config("train.batch_size=1", UNPADDED)
    assert evaluation_cache(config, dataset, []) is not None
    config = tiny_config("train.batch_size=1", UNPADDED, "evaluate.batch_size=2")
    assert evaluation_cache(config, dataset, []) is None
    (first, *_) = training_cache(config, dataset, None)._views.batches()
    assert len(first["image"]) == 1
