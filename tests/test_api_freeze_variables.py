from pathlib import Path

import pytest

from detector.freeze import FreezeError, VariableRow, resolve
from detector.selectors import select, split_selectors

ZOO = Path(__file__).parents[2] / "shared" / "oracle" / "zoo"


def zoo_rows():
    """The published Inception v2 detector's variables as rows, its API names for paths too."""
    file = ZOO / "faster_rcnn_inception_v2_coco_2018_01_28.tsv"
    if not file.exists():
        pytest.skip("the published variable list is not there: ../shared/oracle/zoo")
    parts = {
        "FirstStageFeatureExtractor": "feature_extractor",
        "FirstStageBoxPredictor": "rpn",
        "Conv": "rpn",
    }
    rows = []
    for line in file.read_text().splitlines():
        name, shape = line.split("\t")
        component = parts.get(name.split("/")[0], "box_classifier")
        path = f"{component}/{name.split('/', 1)[1]}".replace("weights", "kernel")
        numbers = tuple(int(length) for length in shape.split(",") if length)
        rows.append(VariableRow(path, numbers, True, name, statistic="/moving_" in name))
    return rows


@pytest.mark.parametrize(
    "pattern, prefix, count",
    [
        (
            "FirstStageFeatureExtractor/InceptionV2/Mixed_3.*",
            "FirstStageFeatureExtractor/InceptionV2/Mixed_3",
            70,
        ),
        ("FirstStageFeatureExtractor", "FirstStageFeatureExtractor/", 251),
        (
            "^SecondStageFeatureExtractor/InceptionV2/Mixed_5[ab]",
            "SecondStageFeatureExtractor/InceptionV2/Mixed_5",
            60,
        ),
        ("FirstStageBoxPredictor|^Conv/", ("FirstStageBoxPredictor/", "Conv/"), 6),
    ],
)
@pytest.mark.parametrize("kind", ["re", "api"])
def test_old_freeze_variables_keep_working(kind, pattern, prefix, count):
    rows = zoo_rows()
    plan = resolve(rows, freeze=f"{kind}:{pattern}")
    matched = {row.path for row in rows if row.api_name.startswith(prefix)} - {
        row.path for row in rows if "[ab]" in pattern and "Mixed_5c" in row.path
    }
    assert plan.freeze == {f"{kind}:{pattern}": count}
    assert len(matched) == count
    assert set(plan.trained) == {row.path for row in rows if not row.statistic} - matched


def test_a_pattern_of_what_a_name_must_not_hold_is_for_the_apis_names():
    rows = zoo_rows()
    negative = "^((?!FirstStageFeatureExtractor).)*$"
    others = {row.path for row in rows if not row.api_name.startswith("FirstStageFeatureExtractor")}
    assert select(f"api:{negative}", rows) == others
    # Paths hold nothing of that name: as `re:` it means everything.
    assert select(f"re:{negative}", rows) == {row.path for row in rows}
    with pytest.raises(FreezeError, match="'api:feature_extractor/' matches nothing; nearest"):
        select("api:feature_extractor/", rows)
    assert split_selectors("api:a{1,2},b") == ["api:a{1,2},b"]
