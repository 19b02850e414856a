"""What a cache of features is made of, and that a stale one is never taken."""

import errno
import json

import numpy as np
import pytest
import tensorflow as tf
from five_examples import ENTRIES, HEADS, entry_at, plan_of

from detector.array_file import ArrayWriter
from detector.builder import build_model
from detector.cache_folder import CacheFolder
from detector.feature_cache import CacheStopped, FeatureCache
from detector.held_file import take_alone
from detector.owned_folder import bytes_in

# TensorFlow's notice that data sets are not run eagerly.
pytestmark = pytest.mark.filterwarnings("ignore:Even though the:UserWarning")


@pytest.fixture
def only_pages(monkeypatch):
    """Keep no features, where only the names count."""

    def write_page(self, prefix, parts, is_stopped, folder, make_room):
        (folder / "cache.json").write_text(json.dumps({"fields": {}}))

    monkeypatch.setattr(FeatureCache, "_compute", write_page)


@pytest.mark.usefixtures("eagerly")
def test_a_cache_is_computed_once_and_used_again(tiny_model, five):
    model, notes = tiny_model(), []
    plan = plan_of(model, ["feature_extractor", "rpn"])
    kept = five.cache().open(model, plan, notes.append)
    (folder,) = five.caches()
    page = folder / "cache.json"
    assert take_alone(page) is None  # in use
    kept.close()
    with take_alone(page):
        pass
    kept = five.cache().open(model, plan, notes.append)
    assert five.passes == 1 and five.caches() == [folder]
    assert "computed once for 5 examples" in notes[0] and "made before" in notes[1]
    assert take_alone(page) is None
    del kept
    with take_alone(page):
        pass

    # No more than the values, and a page that says what they are of.
    assert {path.suffix for path in folder.iterdir()} == {".bin", ".npy", ".json"}
    made_of = json.loads(page.read_text())
    assert made_of["cut"][-1] == "rpn" and made_of["entries"] == ENTRIES
    assert made_of["fields"]["features"] == {"dtype": "float32", "stored": "float32"}
    assert set(made_of["variables"]) == {
        path for path in model.variables_by_path if not path.startswith("box_classifier")
    }


@pytest.mark.usefixtures("only_pages")
def test_whatever_the_features_depend_on_makes_another_cache(tiny_model, five):
    model = tiny_model()
    variables = model.variables_by_path

    def caches_after_opening(cache, freeze=HEADS):
        cache.open(model, plan_of(model, freeze), print)
        return len(five.caches())

    assert caches_after_opening(five.cache()) == 1
    variables["rpn/conv/bias"].assign_add([1.0] * 8)  # it trains
    assert caches_after_opening(five.cache()) == 1
    assert caches_after_opening(five.cache(five.views("other examples"))) == 2
    assert caches_after_opening(five.cache(storage="float16")) == 3
    assert caches_after_opening(five.cache(), ["feature_extractor[:Mixed_4c]"]) == 4
    assert caches_after_opening(five.cache(model_config={"precision": "bfloat16"})) == 5
    # Anchors across the edge propose in detection alone.
    assert caches_after_opening(five.cache(five.views(entry_at=None))) == 6
    statistic = variables["feature_extractor/Mixed_3b/Branch_0/Conv2d_0a_1x1/BatchNorm/moving_mean"]
    before = statistic.numpy()
    statistic.assign_add([1e-6] * 6)
    assert caches_after_opening(five.cache()) == 7
    statistic.assign(before)
    assert caches_after_opening(five.cache()) == 7


def test_a_plan_without_a_frozen_prefix_has_nothing_to_cache(tiny_model, five):
    model, notes = tiny_model(), []
    assert five.cache().open(model, plan_of(model, ["rpn"]), notes.append) is None
    assert notes == ["no features to cache: what comes first in the model trains"]
    assert five.passes == 0 and not five.caches()


def test_a_stopped_computation_leaves_nothing(tiny_model, five):
    model = tiny_model()
    with pytest.raises(CacheStopped):
        five.cache().open(model, plan_of(model, HEADS), print, is_stopped=lambda: True)
    assert not five.caches()


@pytest.mark.usefixtures("only_pages")
def test_what_a_killed_run_left_half_made_is_told(tiny_model, five):
    model, notes = tiny_model(), []
    killed = five.folder / ".partial-killed"
    killed.mkdir(parents=True)
    (killed / "features.bin").write_bytes(bytes(2_000_000))
    five.cache().open(model, plan_of(model, HEADS), notes.append)
    assert notes[0] == f"deleted 2.0 MB in {five.folder}, which killed runs left half made"
    assert len(notes) == 2 and len(five.caches()) == 1


@pytest.mark.usefixtures("eagerly")
def test_larger_canvases_than_the_first_are_reckoned_with_as_they_come(
    tiny_model, five, make_batch, monkeypatch
):
    model, notes, asked = tiny_model(), [], []
    rows = [make_batch(entry, batch_size=1, side=128 if entry else 64) for entry in range(ENTRIES)]
    make_room = CacheFolder._make_room

    def note_and_make_room(self, own, needed, written):
        asked.append((needed, written))
        make_room(self, own, needed, written)

    monkeypatch.setattr(CacheFolder, "_make_room", note_and_make_room)

    def open_within(limit_bytes, key):
        asked.clear()
        cache = five.cache(five.views(key, 1, rows), limit_bytes=limit_bytes)
        return cache.open(model, plan_of(model, HEADS), notes.append)

    assert open_within(10**9, "first") is not None
    needed, size = asked[-1]
    assert needed >= size > 2 * asked[0][0]  # what the first example says of all is too little
    (whole,) = five.caches()

    # They grow beyond what the cache that is there leaves of the limit, and it makes room for them.
    assert open_within(bytes_in(whole) + size // 2, "second") is not None
    (second,) = five.caches()
    assert second != whole

    # They grow beyond the limit, which is noticed before all are computed.
    assert open_within(size // 2, "third") is None
    assert len(asked) < ENTRIES and asked[0][0] <= size // 2 < asked[-1][0]
    assert "are computed at every step: they take" in notes[-1] and "raise train.cache_limit_gb" in notes[-1]
    assert not five.caches()  # the one before made room for the first batch


@pytest.mark.usefixtures("eagerly")
def test_a_disk_that_gets_full_leaves_nothing(tiny_model, five, monkeypatch):
    model, notes, rows = tiny_model(), [], []
    append = ArrayWriter.append

    def append_until_the_disk_is_full(writer, value):
        rows.append(value)
        if len(rows) == 30:  # in the second batch
            raise OSError(errno.ENOSPC, "No space left on device")
        append(writer, value)

    monkeypatch.setattr(ArrayWriter, "append", append_until_the_disk_is_full)
    assert five.cache().open(model, plan_of(model, HEADS), notes.append) is None
    assert not five.caches()
    (told,) = notes
    assert told.startswith(
        "features after feature_extractor/Mixed_4e are computed at every step: the disk of"
    )


@pytest.mark.usefixtures("eagerly")
def test_float16_takes_half_the_room(tiny_model, five):
    model, seed = tiny_model(), tf.constant([0, 0])
    losses = []
    for storage in ("float32", "float16"):
        kept = five.cache(storage=storage).open(model, plan_of(model, HEADS), print)
        batch = next(iter(kept.batches(2)))
        assert batch["features"].dtype == tf.float32
        losses.append({name: float(loss) for name, loss in kept.named_losses(batch, seed).items()})
    small, large = sorted((folder / "features.bin").stat().st_size for folder in five.caches())
    assert large == 2 * small
    assert losses[1] == pytest.approx(losses[0], rel=1e-2) and losses[1] != losses[0]


@pytest.mark.usefixtures("eagerly")
def test_features_in_bfloat16_are_kept_as_they_are(tiny_config, five):
    model = build_model(tiny_config("model.precision=bfloat16").model, ("circle", "square", "star"))
    plan = plan_of(model, HEADS)
    plan.apply(model.components)
    batch = next(iter(five.cache().open(model, plan, print).batches(1)))
    expected = model.first_stage(five.rows[entry_at(0)]["image"]).features
    assert batch["features"].dtype == expected.dtype == tf.bfloat16
    np.testing.assert_allclose(
        tf.cast(batch["features"], tf.float32), tf.cast(expected, tf.float32), rtol=0.02, atol=0.02
    )
