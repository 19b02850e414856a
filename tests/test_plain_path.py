import json
import shutil
from types import SimpleNamespace

import pytest
import tensorflow as tf

from detector import checkpoint
from detector.checkpoint import CheckpointInfo
from detector.export import export
from detector.loading import load_detector
from detector.plain_path import require_plain
from detector.plan_record import read_record
from detector.run_log import RunLog
from detector.weights.source import open_source

CANNOT = r"TensorFlow does not find what lies at a path with \[ or \\, .*: rename the folder"


def write(folder):
    folder.mkdir()
    prefix = str(folder / "variables")
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=["a"], shape_and_slices=[""], tensors=[tf.constant(1.0)])
    assert (folder / "variables.index").is_file()
    return prefix


@pytest.mark.parametrize("name", ["a[1]", "a\\b"])
def test_tensorflow_cannot_read_what_it_writes_there(name, tmp_path):
    prefix = write(tmp_path / name)
    with pytest.raises(tf.errors.NotFoundError):
        tf.train.load_checkpoint(prefix)
    for refuse in (require_plain, open_source):
        with pytest.raises(ValueError, match=CANNOT):
            refuse(prefix)


@pytest.mark.parametrize("name", ["a*b", "a?b", "a{1,2}", "a-1_b.2 (é)"])
def test_tensorflow_can_read_there(name, tmp_path):
    prefix = write(tmp_path / name)
    (tmp_path / "aab").mkdir()
    assert tf.train.load_checkpoint(require_plain(prefix)).get_tensor("a") == 1.0


def test_nothing_is_written_where_it_could_not_be_read(tmp_path):
    with pytest.raises(ValueError, match=rf"a\[1\]: {CANNOT}"):
        RunLog(tmp_path / "a[1]")
    with pytest.raises(ValueError, match=CANNOT):
        checkpoint.save(tmp_path / "a[1]", CheckpointInfo(0, [], {}), {"a": tf.Variable(1.0)})
    with pytest.raises(ValueError, match=CANNOT):
        export(SimpleNamespace(class_names=[]), None, tmp_path / "a[1]", categories=[], manifest={})
    assert not list(tmp_path.iterdir())


def test_what_lies_there_is_not_called_damaged(tmp_path):
    path = checkpoint.save(tmp_path / "a", CheckpointInfo(0, [], {}), {"a": tf.Variable(1.0)})
    moved = shutil.move(path, tmp_path / "a[1]")
    for read in (checkpoint.read_values, open_source):
        with pytest.raises(ValueError, match=CANNOT):
            read(moved)
    link = tmp_path / "plain"
    link.symlink_to(moved)
    assert checkpoint.read_values(link)["a"] == 1.0


def test_a_saved_model_there_is_not_called_damaged(tmp_path):
    folder = tmp_path / "a[1]"
    page = {"step": 0, "plan": None, "digests": {}, "proof": {"variables": {}}, "provenance": {}}
    (folder / "assets").mkdir(parents=True)
    (folder / "assets" / "freeze_manifest.json").write_text(json.dumps(page))
    for name in ("saved_model.pb", "assets/label_map.pbtxt"):
        (folder / name).touch()
    for read in (load_detector, read_record):
        with pytest.raises(ValueError, match=CANNOT):
            read(folder)
