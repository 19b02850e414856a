import hashlib
import json

import numpy as np
import pytest
import tensorflow as tf

from detector.digest import digests
from detector.freeze import VariableRow
from detector.freeze_proof import FreezeProofError, prove
from detector.provenance import provenance_of

ROWS = [
    VariableRow("feature_extractor/Mixed_3b/kernel", (2, 2), restored=True),
    VariableRow("rpn/conv/kernel", (2,), restored=False),
    VariableRow("box_classifier/tower/kernel", (2,), restored=True),
    VariableRow("box_classifier/predictor/kernel", (2,), restored=False),
]
PROVENANCE = provenance_of(
    [row.path for row in ROWS if row.restored], [row.path for row in ROWS if not row.restored], "coco.ckpt"
)


def make_variables():
    return {row.path: tf.Variable(np.arange(row.size, dtype=np.float32).reshape(row.shape)) for row in ROWS}


def test_a_digest_is_sha256_over_dtype_shape_and_bytes():
    value = np.array([[1.0, 2.0]], np.float32)
    by_hand = hashlib.sha256(b"float32 [1, 2] " + value.tobytes()).hexdigest()
    assert digests({"a": tf.Variable(value)}) == {"a": by_hand}


@pytest.mark.parametrize(
    "other",
    [
        np.array([[1.0, np.nextafter(np.float32(2), np.float32(3))]], np.float32),  # one bit
        np.array([[1.0, 2.0]], np.float64),
        np.array([1.0, 2.0], np.float32),
        np.array([[2.0, 1.0]], np.float32),
    ],
)
def test_a_digest_sees_every_bit_the_dtype_and_the_shape(other):
    value = tf.Variable(np.array([[1.0, 2.0]], np.float32))
    assert digests({"a": value}) != digests({"a": tf.Variable(other)})


def test_signed_zeros_differ_and_equal_nans_do_not():
    zeros = [digests({"a": tf.Variable(np.float32(zero))}) for zero in (0.0, -0.0)]
    assert zeros[0] != zeros[1]
    assert digests({"a": tf.Variable(np.float32("nan"))}) == digests({"a": tf.Variable(np.float32("nan"))})


def test_bfloat16_has_a_digest():
    one, two = (digests({"a": tf.Variable(tf.constant([value], tf.bfloat16))}) for value in (1.0, 2.0))
    assert one != two


def test_the_proof_holds_while_only_trained_variables_move():
    variables = make_variables()
    frozen = ["feature_extractor/Mixed_3b/kernel", "box_classifier/tower/kernel"]
    before = digests({path: variables[path] for path in frozen})
    variables["rpn/conv/kernel"].assign([7.0, 7.0])
    proof = prove(before, variables, step=300, provenance=PROVENANCE)
    assert proof.holds and proof.moved == () and list(proof.after) == frozen
    proof.verify()


def test_the_proof_fails_naming_what_moved():
    variables = make_variables()
    before = digests(variables)
    variables["box_classifier/tower/kernel"].assign([0.0, np.nextafter(np.float32(1), np.float32(2))])
    proof = prove(before, variables, step=300, provenance=PROVENANCE)
    assert not proof.holds
    assert proof.moved == ("box_classifier/tower/kernel",)
    with pytest.raises(
        FreezeProofError, match="1 of 4 frozen variables moved by step 300: box_classifier/tower/"
    ):
        proof.verify()
    holds = {name: part["holds"] for name, part in proof.components().items()}
    assert holds == {"feature_extractor": True, "rpn": True, "box_classifier": False}


def test_a_variable_that_vanished_is_no_proof():
    variables = make_variables()
    before = digests(variables)
    del variables["rpn/conv/kernel"]
    with pytest.raises(FreezeProofError, match="no longer in the model: rpn/conv/kernel"):
        prove(before, variables, step=1, provenance=PROVENANCE)


def test_the_file_holds_digests_per_variable_and_component():
    variables = make_variables()
    frozen = "feature_extractor/Mixed_3b/kernel"
    before = digests({frozen: variables[frozen]})
    written = json.loads(json.dumps(prove(before, variables, 5, PROVENANCE).to_dict()))
    assert (written["holds"], written["step"], written["frozen_variables"]) == (True, 5, 1)
    assert written["variables"] == {frozen: {"before": before[frozen], "after": before[frozen]}}
    component = written["components"]["feature_extractor"]
    by_hand = hashlib.sha256(f"{frozen} {before[frozen]}\n".encode()).hexdigest()
    assert component["digest_before"] == component["digest_after"] == by_hand
    assert component["provenance"]["checkpoint"] == "coco.ckpt"
    assert written["components"]["rpn"]["frozen_variables"] == 0

    variables[frozen].assign(np.zeros([2, 2]))
    moved = prove(before, variables, 6, PROVENANCE).to_dict()
    assert (moved["holds"], moved["moved"]) == (False, [frozen])
    assert moved["components"]["feature_extractor"]["digest_after"] != by_hand


def test_component_digests_do_not_depend_on_the_order_of_variables():
    variables = make_variables()
    before = digests(variables)
    turned = dict(reversed(before.items()))
    joint = [
        prove(digest, variables, 1, PROVENANCE).components()["box_classifier"] for digest in (before, turned)
    ]
    assert joint[0] == joint[1]
