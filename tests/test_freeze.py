import json
import shlex

import pytest
from example_rows import PATHS, ROWS, STATISTICS, below, make_rows

from detector.freeze import FreezeError, FreezePlan, VariableRow, resolve


@pytest.mark.parametrize(
    "selector, message",
    [
        ("box_clasifier", "freeze selector 'box_clasifier' matches nothing; nearest: 'box_classifier'"),
        ("Mixed_3b", "matches nothing; nearest: 'feature_extractor/Mixed_3b'"),
        ("fature_extractor/Mixed_3b", "nearest: 'feature_extractor/Mixed_3b'"),
        ("rpn/con", "nearest: 'rpn/conv'"),  # a prefix ends at a slash
        (
            "box_classifier/Mixed_6*",
            "nearest: 'box_classifier/tower/Mixed_5a', 'box_classifier/tower/Mixed_5b'",
        ),
        ("backbone", "the components are 'feature_extractor', 'rpn', 'box_classifier'"),
        ("re:FirstStageFeatureExtractr/.*", "nearest: 'FirstStageFeatureExtractor'"),
        ("re:^Mixed_3b", "'re:^Mixed_3b' matches nothing; nearest: 'feature_extractor/Mixed_3b'"),
        ("re:Mixed_(3b", r"'re:Mixed_(3b' is not a regular expression: missing ), unterminated subpattern"),
        ("re:", "has no pattern"),
        ("api:", "has no pattern"),
        ("feature_extractor[:Mixed_9z]", "has no stage 'Mixed_9z'; its stages: Conv2d_1a, Mixed_3b"),
        (
            "box_classifier[:Mixed_5a]",
            "no stage 'Mixed_5a' ('box_classifier/tower' has); its stages: tower, predictor",
        ),
        ("feature_extractor[Mixed_3b:Conv2d_1a]", "matches nothing: 'Mixed_3b' comes after 'Conv2d_1a'"),
        (
            "feature_extracter[:Mixed_3b]",
            "'feature_extracter', which does not exist; nearest: 'feature_extractor'",
        ),
        ("feature_extractor[:Mixed_3b", "is not a slice"),
        ("feature_extractor[Mixed_3b]", "is not a slice; write component[FIRST:LAST]"),
        ("feature_extractor[::2]", "is not a slice"),
        ("[:5]", "does not say what it slices; the components are 'feature_extractor'"),
        ("feature_extractor[1:Mixed_3b]", "mixes a layer number and a stage name"),
        (
            "feature_extractor[2:3]",
            "feature_extractor.layers has 5 layers, and the 1 in the slice hold no variables",
        ),
        ("feature_extractor[50:]", "matches nothing: feature_extractor.layers has 5 layers, and the 0"),
        ("box_classifier/tower[:3]", "write box_classifier[:3] with numbers of box_classifier.layers"),
        ("all_but:**", "leaves out every variable"),
        ("all_but:rpm", "freeze selector 'rpm' matches nothing; nearest: 'rpn'"),
        ("none,rpn", "'none' stands alone, but came with 'rpn'"),
        ("", "empty selector in ''"),
        ("rpn,,box_classifier", "empty selector in 'rpn,,box_classifier'"),
        ("**", "--freeze '**' leaves nothing to train: all 20 variables would be frozen"),
        ("all_but:none", "leaves nothing to train"),
        ("feature_extractor,rpn,box_classifier", "leaves nothing to train"),
    ],
)
def test_a_freeze_selector_that_cannot_be_meant_is_refused(selector, message):
    with pytest.raises(FreezeError) as error:
        resolve(ROWS, freeze=selector)
    assert message in str(error.value)


def test_train_only_errors():
    with pytest.raises(FreezeError, match="train_only selector 'rpm' matches nothing; nearest: 'rpn'"):
        resolve(ROWS, train_only="rpm")
    with pytest.raises(FreezeError, match="train_only 'none' would train nothing"):
        resolve(ROWS, train_only="none")
    with pytest.raises(FreezeError, match="--freeze rpn --train-only rpn/conv leaves nothing to train"):
        resolve(ROWS, freeze="rpn", train_only="rpn/conv")
    with pytest.raises(FreezeError, match="leaves nothing to train"):
        resolve(ROWS, train_only="re:moving_", batch_norm="update")  # averages alone are no training


def test_together_a_variable_trains_if_train_only_matches_it_and_freeze_does_not():
    plan = resolve(ROWS, freeze=["rpn/objectness", "**/bias"], train_only="rpn,box_classifier/predictor")
    assert set(plan.trained) == {
        "rpn/conv/kernel",
        "box_classifier/predictor/class_scores/kernel",
        "box_classifier/predictor/box_refinement/kernel",
    }
    assert plan.freeze == {"rpn/objectness": 2, "**/bias": 4}
    assert plan.train_only == {"rpn": 4, "box_classifier/predictor": 4}


FIRST_NORM, TOWER_NORM = "feature_extractor/Conv2d_1a/BatchNorm", "box_classifier/tower/Mixed_5a/BatchNorm"


@pytest.mark.parametrize(
    "choices, still",
    [
        ({"freeze": "none"}, ()),
        ({"freeze": "box_classifier"}, (TOWER_NORM,)),
        ({"freeze": "rpn"}, ()),
        ({"freeze": "**/kernel"}, ()),
        ({"freeze": "**/gamma"}, ()),  # the offset still trains
        ({"freeze": "**/gamma,**/beta"}, (FIRST_NORM, TOWER_NORM)),
        ({"freeze": f"{FIRST_NORM}/moving_mean"}, (FIRST_NORM,)),  # half fixed statistics do not exist
        ({"freeze": "re:BatchNorm"}, (FIRST_NORM, TOWER_NORM)),
        ({"train_only": "feature_extractor"}, (TOWER_NORM,)),
        ({"train_only": "re:gamma|beta|kernel"}, (FIRST_NORM, TOWER_NORM)),
    ],
)
def test_which_statistics_stand_still(choices, still):
    updated = resolve(ROWS, **choices, batch_norm="update")
    assert updated.fixed_statistics == still
    assert set(updated.updated) == {path for path in STATISTICS if not path.startswith(still or "-")}
    assert set(updated.trained) | set(updated.updated) | set(updated.frozen) == set(PATHS)

    fixed = resolve(ROWS, **choices, batch_norm="fixed")
    assert fixed.fixed_statistics == (FIRST_NORM, TOWER_NORM)
    assert fixed.updated == ()
    assert fixed.trained == updated.trained


def test_batch_norm_must_be_fixed_or_update():
    with pytest.raises(ValueError, match="expected 'fixed' or 'update', got 'frozen'"):
        resolve(ROWS, batch_norm="frozen")


def test_freezing_fresh_variables_is_refused_with_a_selector_that_works():
    rows = make_rows(
        fresh=["box_classifier/predictor/class_scores", "box_classifier/predictor/box_refinement"]
    )
    with pytest.raises(FreezeError) as error:
        resolve(rows, freeze="box_classifier")
    message = str(error.value)
    assert "--freeze box_classifier would freeze 4 fresh variables" in message
    for leaf in ("class_scores/kernel", "class_scores/bias", "box_refinement/kernel", "box_refinement/bias"):
        assert f"box_classifier/predictor/{leaf}" in message
    assert "use --freeze box_classifier/tower, restore" in message
    assert message.endswith("or set freeze.allow_fresh (--allow-fresh) to freeze them anyway")

    assert set(resolve(rows, freeze="box_classifier", allow_fresh=True).frozen) >= below("box_classifier/")
    assert set(resolve(rows, freeze="box_classifier/tower").trained) >= below("box_classifier/predictor/")


def proposal(message):
    """The choices of the command that a message proposes."""
    words = shlex.split(message.split("; use ")[1].split(", restore a checkpoint")[0])
    flags = {"--freeze": "freeze", "--train-only": "train_only"}
    choices = {}
    for flag, value in zip(words[::2], words[1::2], strict=True):
        choices.setdefault(flags[flag], []).append(value)
    return choices


@pytest.mark.parametrize(
    "fresh", [("box_classifier/predictor",), ("rpn", "box_classifier/predictor/class_scores")]
)
@pytest.mark.parametrize(
    "choices",
    [
        {"freeze": ["box_classifier", "feature_extractor[:Conv2d_1a]"]},
        {"freeze": ["all_but:rpn/conv"]},
        {"freeze": ["**/bias"], "train_only": ["box_classifier/tower"]},
        {"train_only": ["feature_extractor"]},
        {"freeze": ["re:kernel"]},
    ],
)
def test_what_a_refusal_proposes_freezes_all_it_can_and_nothing_fresh(choices, fresh):
    rows = make_rows(fresh=fresh)
    with pytest.raises(FreezeError) as error:
        resolve(rows, **choices)
    wanted = set(resolve(rows, **choices, allow_fresh=True).frozen)
    fresh_paths = {row.path for row in rows if not row.restored}
    assert set(resolve(rows, **proposal(str(error.value))).frozen) == wanted - fresh_paths


def test_a_refusal_keeps_the_selectors_that_were_right():
    with pytest.raises(FreezeError) as error:
        resolve(make_rows(fresh=["rpn/conv"]), freeze="feature_extractor[:Conv2d_1a],rpn,re:tower.*bias|beta")
    assert proposal(str(error.value)) == {
        "freeze": ["feature_extractor[:Conv2d_1a]", "rpn/objectness", "re:tower.*bias|beta"]
    }


def test_a_refusal_without_a_short_remedy_names_what_to_leave_out():
    rows = [
        VariableRow(f"rpn/block{n}/{leaf}", (1,), restored=n > 0)
        for n in range(12)
        for leaf in ("kernel", "bias")
    ]
    with pytest.raises(FreezeError, match=r"use a selector that leaves out rpn/block0/kernel, restore"):
        resolve(rows, freeze="re:kernel")


def test_from_scratch_there_is_nothing_to_freeze():
    rows = make_rows(fresh=[""])
    with pytest.raises(FreezeError) as error:
        resolve(rows, freeze="box_classifier", batch_norm="update")
    assert ", and 4 more; restore a checkpoint that has them" in str(error.value)
    with pytest.raises(
        FreezeError,
        match=r"keep 4 fresh moving averages .* \(--set model.batch_norm=update\) .* \(--allow-fresh\)$",
    ):
        resolve(rows, batch_norm="fixed")
    assert set(resolve(rows, batch_norm="update").updated) == STATISTICS
    assert resolve(rows, batch_norm="fixed", allow_fresh=True).updated == ()


def test_summaries_count_what_trains():
    plan = resolve(make_rows(fresh=["rpn/conv"]), freeze="box_classifier/tower", batch_norm="update")
    part = plan.by_component()["box_classifier"]
    assert (part.variables, part.parameters) == (10, 60)
    assert (part.trained_variables, part.trained_parameters, part.trainable_variables) == (4, 24, 8)
    assert (part.statistics, part.updated_statistics, part.restored_variables) == (2, 0, 10)
    stages = plan.by_stage()
    assert list(stages)[-4:] == [
        "rpn",
        "box_classifier/tower/Mixed_5a",
        "box_classifier/tower/Mixed_5b",
        "box_classifier/predictor",
    ]
    assert (stages["rpn"].variables, stages["rpn"].restored_variables) == (4, 2)
    assert stages["feature_extractor/Conv2d_1a"].updated_statistics == 2
    assert plan.summary().variables == sum(stage.variables for stage in stages.values()) == 20
    assert plan.trains("rpn/conv/kernel") and not plan.trains("box_classifier/tower/Mixed_5b/conv/kernel")
    assert not plan.trains(f"{FIRST_NORM}/moving_mean")


def test_a_plan_survives_json():
    plan = resolve(ROWS, freeze="feature_extractor[:Conv2d_1a],rpn", train_only="all_but:**/bias")
    manifest = json.loads(json.dumps(plan.to_dict()))
    assert FreezePlan.from_dict(manifest) == plan
    assert manifest["freeze"] == {"feature_extractor[:Conv2d_1a]": 5, "rpn": 4}

    manifest["variables"][0]["fate"] = "trained"
    with pytest.raises(FreezeError, match="was altered"):
        FreezePlan.from_dict(manifest)
    with pytest.raises(FreezeError, match="not a freeze plan"):
        FreezePlan.from_dict({"freeze": {}})


def test_plans_that_amount_to_the_same_share_a_digest():
    by_prefix, by_stages = (
        resolve(ROWS, freeze="feature_extractor"),
        resolve(ROWS, freeze="feature_extractor[:]"),
    )
    assert by_prefix.digest == by_stages.digest
    assert by_prefix != by_stages
    assert by_prefix.digest != resolve(ROWS, freeze="rpn").digest


STAGE_ORDER = [
    "feature_extractor/Conv2d_1a",
    "feature_extractor/MaxPool_2a",
    "feature_extractor/Mixed_3b",
    "rpn/conv",
]


@pytest.mark.parametrize(
    "freeze, batch_norm, length",
    [
        ("none", "fixed", 0),
        ("feature_extractor/Conv2d_1a", "update", 2),  # the pooling behind it has nothing that could move
        ("feature_extractor", "fixed", 3),
        ("feature_extractor,rpn", "fixed", 4),
        ("feature_extractor/Mixed_3b", "fixed", 0),  # frozen, but what comes before it trains
        ("feature_extractor/Conv2d_1a/conv", "fixed", 0),  # gamma and beta train
        ("**/kernel", "update", 0),
    ],
)
def test_frozen_prefix(freeze, batch_norm, length):
    plan = resolve(ROWS, freeze=freeze, batch_norm=batch_norm)
    assert plan.frozen_prefix(STAGE_ORDER) == STAGE_ORDER[:length]


def test_a_prefix_whose_statistics_update_is_not_frozen():
    rows = [
        row for row in ROWS if not row.path.endswith(("gamma", "beta"))
    ]  # a BatchNorm without scale, offset
    assert resolve(rows, freeze="**/kernel", batch_norm="update").frozen_prefix(STAGE_ORDER) == []
    assert resolve(rows, freeze="**/kernel", batch_norm="fixed").frozen_prefix(STAGE_ORDER) == STAGE_ORDER[:3]
