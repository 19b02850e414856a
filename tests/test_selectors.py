import pytest
from example_rows import PATHS, ROWS, STATISTICS, below

from detector.freeze import VariableRow, resolve
from detector.selectors import largest_prefixes, select, split_selectors, stage_of

SELECTED = {
    "box_classifier": below("box_classifier/"),
    "box_classifier/": below("box_classifier/"),
    "box_classifier/tower": below("box_classifier/tower/"),
    "rpn/conv/kernel": {"rpn/conv/kernel"},
    "feature_extractor/Mixed_3*": below("feature_extractor/Mixed_3b/"),
    "feature_extractor/Mixed_?b": below("feature_extractor/Mixed_3b/"),
    "*/conv": below("rpn/conv/"),  # one star stays within one name
    "**/conv": {path for path in PATHS if "/conv/" in path},
    "feature_extractor/**/BatchNorm": below("feature_extractor/Conv2d_1a/BatchNorm"),
    "rpn/**/conv": below("rpn/conv/"),  # two stars may stand for no name at all
    "**/kernel": {path for path in PATHS if path.endswith("/kernel")},
    "feature_extractor[:Conv2d_1a]": below("feature_extractor/Conv2d_1a/"),
    "feature_extractor[Mixed_3b:]": below("feature_extractor/Mixed_3b/"),
    "feature_extractor[Conv2d_1a:Mixed_3b]": below("feature_extractor/"),
    "feature_extractor[:]": below("feature_extractor/"),
    "box_classifier[:tower]": below("box_classifier/tower/"),
    "box_classifier/tower[:Mixed_5a]": below("box_classifier/tower/Mixed_5a/"),
    "box_classifier/tower[Mixed_5b:Mixed_5b]": below("box_classifier/tower/Mixed_5b/"),
    "box_classifier/predictor[box_refinement:]": below("box_classifier/predictor/box_refinement/"),
    "feature_extractor[:1]": below("feature_extractor/Conv2d_1a/conv/"),
    "feature_extractor[1:3]": below("feature_extractor/Conv2d_1a/BatchNorm/"),
    "feature_extractor[:-2]": below("feature_extractor/Conv2d_1a/"),
    "feature_extractor[-2:]": below("feature_extractor/Mixed_3b/"),
    "box_classifier[2:4]": below("box_classifier/tower/Mixed_5b/", "box_classifier/predictor/class_scores/"),
    "rpn[:100]": below("rpn/"),
    "re:^rpn/": below("rpn/"),
    "re:Mixed_5[ab]/conv": below("box_classifier/tower/Mixed_5a/conv", "box_classifier/tower/Mixed_5b/conv"),
    "re:^Conv/": below("rpn/conv/"),  # only the Object Detection API's name starts so
    "re:FirstStageFeatureExtractor/InceptionV2/Mixed_3.*": below("feature_extractor/Mixed_3b/"),
    "re:.*BatchNorm.*": {path for path in PATHS if "BatchNorm" in path},
    "re:beta|gam{1,2}a": {path for path in PATHS if path.endswith(("beta", "gamma"))},
    "all_but:box_classifier": below("feature_extractor/", "rpn/"),
    "all_but:rpn,box_classifier/tower": below("feature_extractor/", "box_classifier/predictor/"),
    "all_but:re:kernel": {path for path in PATHS if not path.endswith("kernel")},
    "none": set(),
}


@pytest.mark.parametrize("selector", SELECTED)
def test_a_selector_matches_exactly_what_it_says(selector):
    assert select(selector, ROWS) == SELECTED[selector]


@pytest.mark.parametrize("selector", sorted(set(SELECTED) - {"none"}))
def test_freeze_and_train_only_are_complements(selector):
    weights = set(PATHS) - STATISTICS
    if SELECTED[selector] & weights:
        only = resolve(ROWS, train_only=selector)
        assert set(only.trained) == SELECTED[selector] & weights
        assert set(only.frozen) == set(PATHS) - set(only.trained)
    if weights - SELECTED[selector]:
        plan = resolve(ROWS, freeze=selector)
        assert set(plan.trained) == weights - SELECTED[selector]
        assert set(plan.frozen) == set(PATHS) - set(plan.trained)
        assert plan.freeze == {selector: len(SELECTED[selector])}


def test_split_selectors():
    assert split_selectors("rpn, box_classifier/tower") == ["rpn", "box_classifier/tower"]
    assert split_selectors(["rpn", "re:a{1,2},b"]) == ["rpn", "re:a{1,2},b"]
    assert split_selectors("rpn,re:a{1,2}") == ["rpn", "re:a{1,2}"]
    assert split_selectors("all_but:rpn,box_classifier") == ["all_but:rpn,box_classifier"]
    assert split_selectors([]) == []


def test_largest_prefixes():
    assert largest_prefixes(ROWS, below("rpn/", "box_classifier/tower/")) == ["rpn", "box_classifier/tower"]
    assert largest_prefixes(ROWS, {"rpn/conv/kernel"}) == ["rpn/conv/kernel"]
    assert largest_prefixes(ROWS, set()) == []


def test_a_row_knows_its_place():
    row = VariableRow("box_classifier/tower/Mixed_5a/Branch_0/conv/kernel", (3, 3, 8, 16), restored=True)
    assert (row.component, row.stage, row.size) == ("box_classifier", "box_classifier/tower/Mixed_5a", 1152)
    assert row.layer == "box_classifier/tower/Mixed_5a/Branch_0/conv"
    # What has no stages inside is one.
    assert VariableRow("rpn/conv/bias", (), restored=True).stage == "rpn"
    assert stage_of("box_classifier/predictor/class_scores/kernel") == "box_classifier/predictor"
    assert VariableRow("rpn/conv/bias", (), restored=True).size == 1
