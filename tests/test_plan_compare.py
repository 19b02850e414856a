import io

import pytest
from rich.console import Console

from detector.plan_compare import compare, comparison_table

A = {
    "feature_extractor/Mixed_3b/conv/kernel": "1",
    "feature_extractor/Mixed_3b/conv/bias": "2",
    "rpn/conv/kernel": "3",
    "box_classifier/predictor/class_scores/kernel": "4",
    "box_classifier/predictor/box_refinement/kernel": "5",
}
B = {
    "feature_extractor/Mixed_3b/conv/kernel": "1",
    "feature_extractor/Mixed_3b/conv/bias": "other",
    "rpn/conv/kernel": "3",
    "box_classifier/predictor/class_scores/kernel": "other",
    "box_classifier/tower/Mixed_5a/conv/kernel": "6",
}


def shown(comparison, width=80):
    file = io.StringIO()
    Console(file=file, width=width).print(comparison_table(comparison))
    return file.getvalue()


def test_every_variable_is_identical_changed_or_on_one_side():
    comparison = compare(A, B)
    assert comparison.identical == ("feature_extractor/Mixed_3b/conv/kernel", "rpn/conv/kernel")
    assert comparison.changed == (
        "feature_extractor/Mixed_3b/conv/bias",
        "box_classifier/predictor/class_scores/kernel",
    )
    assert comparison.only_in_a == ("box_classifier/predictor/box_refinement/kernel",)
    assert comparison.only_in_b == ("box_classifier/tower/Mixed_5a/conv/kernel",)
    assert comparison.by_stage() == {
        "feature_extractor/Mixed_3b": (1, 1, 0),
        "rpn": (1, 0, 0),
        "box_classifier/predictor": (0, 1, 1),
        "box_classifier/tower/Mixed_5a": (0, 0, 1),
    }
    assert comparison.broken == ()


@pytest.mark.parametrize(
    ("frozen", "broken"),
    [
        (["rpn/conv/kernel"], []),
        (
            ["rpn/conv/kernel", "feature_extractor/Mixed_3b/conv/bias"],
            ["feature_extractor/Mixed_3b/conv/bias"],
        ),
        # Frozen and missing on one side is not identical either.
        (["box_classifier/tower/Mixed_5a/conv/kernel"], ["box_classifier/tower/Mixed_5a/conv/kernel"]),
    ],
)
def test_what_is_frozen_must_be_identical(frozen, broken):
    comparison = compare(A, B, frozen)
    assert list(comparison.broken) == broken
    text = " ".join(shown(comparison).split())
    if broken:
        assert f"BROKEN: {len(broken)} of {len(frozen)} variables that B's plan freezes differ" in text
        assert f"{len(broken)} of {len(broken)} BROKEN" in text
    else:
        assert "all 1 variables that B's plan freezes are identical to A's" in text
        assert "BROKEN" not in text


def test_a_plan_of_another_model_is_an_error():
    with pytest.raises(ValueError, match="neither side has: rpn/other"):
        compare(A, B, ["rpn/other"])


def test_the_table_says_what_changed_in_few_words_and_fits():
    changed = {path: "new" if path.startswith("box_classifier") else value for path, value in A.items()}
    text = shown(compare(A, changed, ["rpn/conv/kernel"]))
    assert "changed: box_classifier\n" in text
    assert "3 of 5 variables are bit-identical" in text
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    assert "B carries no plan that freezes anything" in " ".join(shown(compare(A, A)).split())
