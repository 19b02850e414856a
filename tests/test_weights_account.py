from detector.weights.account import account, summary
from detector.weights.importing import ImportReport

SCORES = [f"box_classifier/predictor/class_scores/{leaf}" for leaf in ("kernel", "bias")]
KEPT = "predictor kept, class by class in the file's order: "


def report(fresh=(), left=(), classes=()):
    paths = ["feature_extractor/conv/kernel", "rpn/conv/kernel", *SCORES]
    restored = {path: path.upper() for path in paths if path not in dict(fresh)}
    return ImportReport("model.ckpt", "TF1 detector", restored, dict(fresh), dict(left), tuple(classes))


def test_what_is_restored_whole_is_one_line():
    assert summary(report()) == ["model.ckpt: TF1 detector, all 4 variables restored"]


def test_what_is_fresh_is_told_by_component_with_its_reasons():
    fresh = {"rpn/conv/kernel": "only the backbone", SCORES[0]: "90 classes", SCORES[1]: "never trained"}
    assert summary(report(fresh)) == [
        "model.ckpt: TF1 detector, 1 of 4 variables restored",
        "  rpn: 0 restored, 1 fresh (only the backbone)",
        "  box_classifier: 0 restored, 2 fresh (1: 90 classes; 1: never trained)",
    ]


def test_the_whole_account_has_all_components_and_what_is_left():
    told = report({SCORES[1]: "new: cat"}, {"global_step": "the step"}, ["cat", "dog"])
    lines = [
        "feature_extractor: 1 restored, 0 fresh",
        "rpn: 1 restored, 0 fresh",
        "box_classifier: 1 restored, 1 fresh (new: cat)",
        f"{KEPT}1 → cat, 2 → dog",
        "left in the file: 1 (the step)",
    ]
    assert account(told) == ["model.ckpt: TF1 detector", *lines]
    assert account(told, verbose=True)[1:] == [
        "  restored feature_extractor/conv/kernel <- FEATURE_EXTRACTOR/CONV/KERNEL",
        "  restored rpn/conv/kernel <- RPN/CONV/KERNEL",
        f"  restored {SCORES[0]} <- {SCORES[0].upper()}",
        f"  fresh    {SCORES[1]}: new: cat",
        "  left     global_step: the step",
        *lines,
    ]


def test_many_classes_are_one_line_and_numbers_none():
    names = [f"thing {letter}" for letter in "abcdefg"]
    (_, line) = summary(report(classes=names))
    assert line == f"  {KEPT}1 → thing a, 2 → thing b, 3 → thing c, …, 7 → thing g"
    assert len(summary(report(classes=["1", "2", "3"]))) == 1
    assert "…" not in summary(report(classes=names[:6]))[1]
