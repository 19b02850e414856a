from test_sweep import TRUTH, run_of

from detector.sweep import compare
from detector.sweep_config import Variant
from detector.sweep_disagreements import disagreements
from detector.sweep_runs import RunRecord


def test_the_images_on_which_they_disagree_most():
    blind = RunRecord(**{**vars(run_of("none", 0)), "detections": []})
    perfect = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
        for a in TRUTH["annotations"]
        if a["image_id"] == 7
    ]
    sharp = RunRecord(**{**vars(blind), "detections": perfect})
    variants = [Variant(name="none"), Variant(name="rpn", freeze=("rpn",))]
    result = compare(variants, {"none": [blind], "rpn": [sharp]}, TRUTH, 10)
    assert disagreements(result, 4) == [(7, "rpn", "none")]
    assert disagreements(compare(variants, {"none": [sharp], "rpn": [sharp]}, TRUTH, 10), 4) == []
