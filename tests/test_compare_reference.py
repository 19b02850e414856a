import re
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import compare_reference

from detector.reference import Comparison, _compare, _in_the_order_of, relative_error

pytestmark = pytest.mark.usefixtures("rewritten_graphs")

REFERENCES = {
    "faster_rcnn_inception_v2": "faster_rcnn_inception_v2_coco_2018_01_28",
    "faster_rcnn_resnet50_v1": "faster_rcnn_resnet50_v1_640x640_coco17_tpu-8",
}
# Of gradients, on any CPU: Inception's max pools switch where rounding decides, ResNet's first alone is one.
LARGEST_GRADIENT_ERROR = {"faster_rcnn_inception_v2": 1e-2, "faster_rcnn_resnet50_v1": 1e-3}
# Of rows, in percent: equal scores abound over the padding of ResNet's image, and the last digit decides what
# is kept there.  97.7 were found on one CPU.
LEAST_FOUND = {"faster_rcnn_inception_v2": 100.0, "faster_rcnn_resnet50_v1": 95.0}


def arguments(shared, name, checkpoint, reference=None):
    """Return what compares a checkpoint with a reference, by default the stored one."""
    stored = shared / "oracle" / "reference"
    return [
        *("--checkpoint", str(checkpoint)),
        *("--model-config", str(stored / f"{name}.model.config")),
        *("--reference", str(reference or stored / f"{name}.npz")),
    ]


@pytest.fixture(scope="module")
def seeded(shared, tmp_path_factory):
    """Return a function from a reference's name to its checkpoint, written once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(shared / "oracle"))
        import seeded_checkpoint

    @cache
    def write(name):
        prefix = tmp_path_factory.mktemp(name) / "model.ckpt"
        seeded_checkpoint.main(str(shared / "oracle" / "zoo" / f"{REFERENCES[name]}.tsv"), str(prefix))
        return prefix

    return write


@pytest.mark.parametrize(
    "name",
    [
        "faster_rcnn_inception_v2",
        # Half a minute, which `.ci/run` takes.
        pytest.param("faster_rcnn_resnet50_v1", marks=pytest.mark.slow),
    ],
)
def test_the_detector_computes_what_the_original_computes(seeded, capsys, shared, name):
    status = compare_reference.main(arguments(shared, name, seeded(name)))
    lines = capsys.readouterr().out.splitlines()
    assert status == 0, "\n".join(line for line in lines if not line.startswith("ok"))
    with np.load(shared / "oracle" / "reference" / f"{name}.npz") as reference:
        inputs = {"image", "train/groundtruth_boxes", "train/groundtruth_classes_0based"}
        keys = set(reference.files) - inputs
    assert {line.split()[1] for line in lines if line.startswith("ok")} == keys
    assert lines[-1] == f"{len(keys)} of {len(keys)} keys agree"
    errors = {line: float(line.split(": ")[1].split()[0]) for line in lines if " train/grad" in line}
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= LARGEST_GRADIENT_ERROR[name], worst
    whole = [line for line in lines if line.startswith("with nothing taken from the reference")]
    assert len(whole) == 3
    assert all(float(line.split()[6].rstrip("%")) >= LEAST_FOUND[name] for line in whole), "\n".join(whole)


def test_keys_that_are_wrong_or_unknown_fail(seeded, capsys, shared, tmp_path):
    name = "faster_rcnn_inception_v2"
    with np.load(shared / "oracle" / "reference" / f"{name}.npz") as stored:
        kept = [
            "image",
            "infer/preprocessed",
            "infer/anchors.sub37",
            "infer/rpn_box_encodings",
            "infer/proposal_boxes",
        ]
        reference = {key: stored[key] for key in kept}
    reference["infer/preprocessed"] = reference["infer/preprocessed"] * 1.001
    reference["infer/rpn_box_encodings"] = reference["infer/rpn_box_encodings"][:, :-1]
    reference["infer/proposal_boxes"] = reference["infer/proposal_boxes"].copy()
    reference["infer/proposal_boxes"][0, :4] += 5.0  # of 300: more than 1 %
    reference["infer/surprise"] = np.zeros(3)
    np.savez(tmp_path / "wrong.npz", **reference)
    assert compare_reference.main(arguments(shared, name, seeded(name), tmp_path / "wrong.npz")) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("FAILED infer/preprocessed [1, 32, 32, 3]: 9.99e-04 (at most 0.0001)")
    assert lines[2].startswith("ok     infer/anchors.sub37 [333, 4]: ")
    assert lines[3] == "FAILED infer/rpn_box_encodings [1, 12287, 4]: another shape: [1, 12288, 4]"
    differing = re.fullmatch(r"FAILED infer/proposal_boxes \[1, 300, 4\]: (\S+) \(at most 0.01\)", lines[4])
    assert 4 / 300 - 1e-4 <= float(differing[1]) < 0.1  # those four, and what the last digits decide
    assert lines[5] == "FAILED infer/surprise [3]: unknown key"
    assert lines[-1] == "1 of 5 keys agree, 4 do not"


def test_mistakes_are_one_line(shared, capsys, tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    for reference, message in (
        (tmp_path / "broken.npz", "is no .npz file or is damaged"),
        (tmp_path / "none.npz", "no reference"),
    ):
        # The checkpoint, which is not there either, comes after the reference.
        options = arguments(shared, "faster_rcnn_inception_v2", tmp_path / "none.ckpt", reference)
        assert compare_reference.main(options) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_relative_error():
    assert relative_error(np.array([3.0, 4.5]), np.array([3.0, 4.0])) == pytest.approx(0.1)
    assert relative_error(np.array([0.0, 2.0]), np.zeros(2)) == 2.0


def test_rows_are_matched_one_to_one_before_they_are_compared():
    key = "infer/proposal_boxes_normalized"
    theirs = np.array([[[0, 0, 0.1, 0.1], [0.2, 0.2, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9]]], np.float32)
    exchanged = theirs[:, [1, 0, 2]] + np.float32(5e-4)
    twice = theirs[:, [0, 0, 2]]
    for mine, differing in ((exchanged, 0.0), (twice, 1 / 3), (theirs + np.float32(2e-3), 1.0)):
        ours = _in_the_order_of(
            {key: theirs}, {key: mine, "infer/proposal_boxes": mine, "infer/final_anchors": mine}
        )
        assert _compare(key, theirs, ours).error == pytest.approx(differing)


def test_a_score_that_is_no_number_fails():
    assert not Comparison("key", (1,), float("nan"), 1.0).agrees
    nan = np.full([1, 2, 4], np.nan)
    assert _compare("infer/final_anchors", np.zeros([1, 2, 4]), {"infer/final_anchors": nan}).error == 1.0
