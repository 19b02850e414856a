import errno
import json
from dataclasses import replace
from pathlib import Path

import launch
import numpy as np
import pytest
import tensorflow as tf

from detector import checkpoint
from detector.checkpoint import CheckpointError, CheckpointInfo

INFO = CheckpointInfo(step=3, categories=[{"id": 7, "name": "cat"}], model={"width": 1}, training={"step": 3})


def variables(scale=1.0):
    return {
        "rpn/conv/kernel": tf.Variable(scale * np.arange(6, dtype=np.float32).reshape(2, 3)),
        "rpn/conv/bias": tf.Variable([scale]),
    }


def test_what_is_saved_comes_back(tmp_path):
    state = {"iterations": tf.Variable(5, dtype=tf.int64)}
    path = checkpoint.save(tmp_path / "step-3", INFO, variables(2.0), state)
    restored, restored_state = variables(0.0), {"iterations": tf.Variable(0, dtype=tf.int64)}
    info = checkpoint.restore(path, restored, restored_state)
    assert (info.step, info.class_names, info.training) == (3, ["cat"], {"step": 3})
    np.testing.assert_array_equal(restored["rpn/conv/kernel"], 2.0 * np.arange(6).reshape(2, 3))
    assert int(restored_state["iterations"]) == 5
    without_optimizer = variables(0.0)
    checkpoint.restore(path, without_optimizer)
    np.testing.assert_array_equal(without_optimizer["rpn/conv/bias"], [2.0])


def test_a_page_is_replaced_and_the_values_stay(tmp_path, monkeypatch):
    path = checkpoint.save(tmp_path / "step-3", INFO, variables(2.0))
    before = checkpoint.read_info(path)
    checkpoint.replace_page(path, replace(INFO, training={"step": 3, "best_step": 3}))
    info = checkpoint.restore(path, variables(0.0))
    assert info == replace(before, training={"step": 3, "best_step": 3}) and info.digests

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.replace_page(path, INFO)
    assert checkpoint.read_info(path) == info and not list(path.glob(".*"))


def test_tensorflow_reads_it_by_path(tmp_path):
    path = checkpoint.save(tmp_path / "step-3", INFO, variables())
    reader = tf.train.load_checkpoint(str(path / "variables"))
    assert reader.has_tensor("rpn/conv/kernel")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["step-3"]  # nothing half written is left


def test_a_killed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = checkpoint.save(tmp_path / "last", INFO, variables(1.0))

    def killed(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(tf.raw_ops, "MergeV2Checkpoints", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, INFO, variables(9.0))
    restored = variables(0.0)
    checkpoint.restore(path, restored)
    np.testing.assert_array_equal(restored["rpn/conv/bias"], [1.0])
    assert [file.name for file in tmp_path.iterdir()] == ["last"]


def test_a_full_disk_is_one_line_and_keeps_nothing_of_what_failed(tmp_path, monkeypatch, capsys):
    path = checkpoint.save(tmp_path / "step-3", INFO, variables(1.0))

    def full(**arguments):
        data = Path(f"{arguments['prefix']}.data-00000-of-00001.tempstate464")
        data.write_bytes(b"as far as it went")
        # TensorFlow's own text.
        operation = "{{function_node __wrapped__SaveV2_dtypes_2_device_/job:localhost/device:CPU:0}}"
        message = f"{operation} {data}; No space left on device [Op:SaveV2]"
        raise tf.errors.ResourceExhaustedError(None, None, message)

    monkeypatch.setattr(tf.raw_ops, "SaveV2", full)
    assert launch.run(lambda: bool(checkpoint.save(path, INFO, variables(9.0)))) == 2
    assert capsys.readouterr().err == (
        f"error: the checkpoint of step 3 could not be written to {path}: No space left on device; make room "
        "for it or name another place\n"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["step-3"]
    restored = variables(0.0)
    checkpoint.restore(path, restored)
    np.testing.assert_array_equal(restored["rpn/conv/bias"], [1.0])


def test_damage_is_found(tmp_path):
    path = checkpoint.save(tmp_path / "a", INFO, variables())
    data = next(path.glob("variables.data*"))
    whole = data.read_bytes()

    data.write_bytes(whole[:-5])
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        checkpoint.restore(path, variables())
    data.unlink()
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        checkpoint.restore(path, variables())
    data.write_bytes(whole)
    page = json.loads((path / "checkpoint.json").read_text())
    page["digests"]["rpn/conv/bias"] = "0" * 64
    (path / "checkpoint.json").write_text(json.dumps(page))
    with pytest.raises(CheckpointError, match="1 values differ from their digests, first rpn/conv/bias"):
        checkpoint.restore(path, variables())
    (path / "checkpoint.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"checkpoint\.json is damaged"):
        checkpoint.restore(path, variables())
    (path / "checkpoint.json").write_text('{"format": 99}')
    with pytest.raises(CheckpointError, match="not of format"):
        checkpoint.restore(path, variables())
    with pytest.raises(CheckpointError, match="is no checkpoint of this package"):
        checkpoint.restore(tmp_path, variables())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda page: page | {"weather": "fine"}, r"checkpoint\.json has an unknown key 'weather'"),
        (
            lambda page: {key: page[key] for key in page if key != "step"},
            r"checkpoint\.json lacks the key 'step'",
        ),
        (lambda page: [page], r"checkpoint\.json is damaged: expected a mapping, got list"),
    ],
)
def test_a_page_of_other_keys_names_the_file_and_the_key(tmp_path, change, message):
    path = checkpoint.save(tmp_path / "a", INFO, variables())
    page = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps(change(page)))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read_info(path)


def test_a_checkpoint_that_does_not_fit_assigns_nothing(tmp_path):
    path = checkpoint.save(tmp_path / "a", INFO, variables(2.0))
    other = {"rpn/conv/kernel": tf.Variable(tf.zeros([2, 3])), "rpn/conv/bias": tf.Variable(tf.zeros([4]))}
    with pytest.raises(
        CheckpointError, match=r"rpn/conv/bias: the model has shape \(4,\), the checkpoint \(1,\)"
    ):
        checkpoint.restore(path, other)
    np.testing.assert_array_equal(other["rpn/conv/kernel"], np.zeros([2, 3]))
    with pytest.raises(CheckpointError, match="left over in the checkpoint: rpn/conv/bias"):
        checkpoint.restore(path, {"rpn/conv/kernel": other["rpn/conv/kernel"]})
    with pytest.raises(CheckpointError, match="missing in the checkpoint: rpn/spare"):
        checkpoint.restore(path, {**variables(), "rpn/spare": tf.Variable(1.0)})
