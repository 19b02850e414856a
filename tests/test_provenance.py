from detector.provenance import provenance_of

RESTORED = ["feature_extractor/Mixed_3b/kernel", "box_classifier/tower/kernel"]
FRESH = ["rpn/conv/kernel", "box_classifier/predictor/kernel"]


def test_every_component_says_which_checkpoint_or_fresh():
    assert provenance_of(RESTORED, FRESH, "coco.ckpt", "TF1 detector") == {
        "feature_extractor": {
            "checkpoint": "coco.ckpt",
            "format": "TF1 detector",
            "restored": 1,
            "fresh": [],
        },
        "rpn": {"checkpoint": None, "format": None, "restored": 0, "fresh": ["rpn/conv/kernel"]},
        "box_classifier": {
            "checkpoint": "coco.ckpt",
            "format": "TF1 detector",
            "restored": 1,
            "fresh": ["box_classifier/predictor/kernel"],
        },
    }


def test_from_scratch_all_is_fresh():
    parts = provenance_of([], [*RESTORED, *FRESH])
    assert [part["restored"] for part in parts.values()] == [0, 0, 0]
    assert [path for part in parts.values() for path in part["fresh"]] == [
        RESTORED[0],
        FRESH[0],
        *RESTORED[1:],
        FRESH[1],
    ]
