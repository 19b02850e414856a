import io
import re

import pytest
from rich.console import Console

from detector.freeze import VariableRow, resolve
from detector.plan_table import plan_table


def make_rows():
    rows = []
    stages = [
        ("feature_extractor/Conv2d_1a_7x7", 9408, True, True),
        ("feature_extractor/Mixed_3b", 30_000, True, True),
        ("rpn/conv", 2_654_208, False, True),
        ("box_classifier/tower/Mixed_5a", 1_440_000, True, True),
        ("box_classifier/predictor/class_scores", 2_048, False, False),
    ]
    for stage, size, norm, restored in stages:
        rows.append(VariableRow(f"{stage}/kernel", (size,), restored))
        for leaf in ("gamma", "beta", "moving_mean", "moving_variance") if norm else ():
            rows.append(VariableRow(f"{stage}/BatchNorm/{leaf}", (64,), restored, statistic="moving" in leaf))
    return rows


def shown(plan, width=80, **options):
    file = io.StringIO()
    Console(file=file, width=width).print(plan_table(plan, **options))
    return file.getvalue()


def cells_of(text, name):
    line = next(line for line in text.splitlines() if line.strip().startswith(name + " "))
    return re.split(r"\s{2,}", line.strip())


def test_every_stage_says_what_trains_and_where_it_came_from():
    text = shown(resolve(make_rows(), freeze="feature_extractor[:Conv2d_1a_7x7]", batch_norm="update"))
    assert cells_of(text, "Conv2d_1a_7x7") == ["Conv2d_1a_7x7", "5", "9,664", "○ frozen", "fixed", "restored"]
    assert cells_of(text, "Mixed_3b") == ["Mixed_3b", "5", "30,256", "● trained", "updated", "restored"]
    assert cells_of(text, "feature_extractor")[3:] == ["◐ 75% trained", "partly", "restored"]
    assert cells_of(text, "rpn") == ["rpn", "1", "2,654,208", "● trained", "restored"]
    assert cells_of(text, "predictor") == ["predictor", "1", "2,048", "● trained", "fresh"]
    assert cells_of(text, "box_classifier")[-1] == "part fresh"
    assert cells_of(text, "total") == ["total", "17", "4,136,432", "◐ >99% trained", "partly", "part fresh"]


def test_stages_are_indented_below_what_holds_them():
    lines = shown(resolve(make_rows(), batch_norm="fixed")).splitlines()
    names = [re.split(r"(?<=\S)\s", line)[0] for line in lines[2:10]]
    assert names == [
        "feature_extractor",
        "  Conv2d_1a_7x7",
        "  Mixed_3b",
        "rpn",
        "box_classifier",
        "  tower",
        "    Mixed_5a",
        "  predictor",
    ]


def test_a_stage_whose_statistics_alone_stand_still_is_trained():
    text = shown(resolve(make_rows(), batch_norm="fixed"))
    assert cells_of(text, "Mixed_3b")[3:] == ["● trained", "fixed", "restored"]
    assert cells_of(text, "total")[3] == "● trained"


def test_a_small_share_is_not_shown_as_none():
    text = shown(resolve(make_rows(), train_only="box_classifier/predictor"))
    assert cells_of(text, "total")[3] == "◐ <1% trained"


def test_a_line_per_selector_with_brackets_intact():
    plan = resolve(make_rows(), freeze="feature_extractor[:Mixed_3b],rpn", train_only="re:.*[kg].*")
    text = shown(plan)
    assert "freeze feature_extractor[:Mixed_3b]: matches 10 variables\n" in text
    assert "freeze rpn: matches 1 variable\n" in text
    assert "train_only re:.*[kg].*: matches" in text


def test_totals_and_saving():
    plan = resolve(make_rows(), freeze="feature_extractor,rpn,box_classifier/tower", batch_norm="update")
    text = " ".join(shown(plan, saving="43 % of a training step").split())
    assert (
        "Trains 2,048 of 4,136,432 parameters (0.0%) in 1 variable; 16 variables stay bit-identical." in text
    )
    assert "Predicted saving: 43 % of a training step" in text
    assert "follow the batches" not in text
    none = " ".join(shown(resolve(make_rows(), batch_norm="update")).split())
    assert "freeze none: everything trains" in none
    assert "6 variables of BatchNorm follow the batches." in none
    assert "Predicted saving" not in none


@pytest.mark.parametrize("width", [80, 100])
def test_nothing_is_cut_or_wrapped(width):
    text = shown(resolve(make_rows(), freeze="box_classifier/tower"), width)
    assert "…" not in text
    header = "component / stage variables parameters state BatchNorm values"
    assert " ".join(text.splitlines()[0].split()) == header
    assert max(map(len, text.splitlines())) <= width


def test_a_log_file_gets_no_escape_codes():
    assert "\x1b" not in shown(resolve(make_rows()))
