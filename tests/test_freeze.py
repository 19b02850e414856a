import json
import shlex
from itertools import combinations
from pathlib import Path

import pytest
import tensorflow as tf
import tf_keras

from detector.batch_norm import BatchNorm
from detector.component import Component, named_variables
from detector.freeze import FreezeError, FreezePlan, VariableRow, resolve, rows_of
from detector.selectors import largest_prefixes, select, split_selectors, stage_of

ZOO = Path(__file__).parents[2] / "shared" / "oracle" / "zoo"

# A detector in small: (layer path, its variables, its position among the component's layers).  The gap at
# feature_extractor's position 2 is a pooling layer, and the last one of its five layers holds nothing either.
NORM = ("gamma", "beta", "moving_mean", "moving_variance")
LAYERS = [
    ("feature_extractor/Conv2d_1a/conv", ("kernel",), 0, 5),
    ("feature_extractor/Conv2d_1a/BatchNorm", NORM, 1, 5),
    ("feature_extractor/Mixed_3b/conv", ("kernel",), 3, 5),
    ("rpn/conv", ("kernel", "bias"), 0, 2),
    ("rpn/objectness", ("kernel", "bias"), 1, 2),
    ("box_classifier/tower/Mixed_5a/conv", ("kernel",), 0, 5),
    ("box_classifier/tower/Mixed_5a/BatchNorm", NORM, 1, 5),
    ("box_classifier/tower/Mixed_5b/conv", ("kernel",), 2, 5),
    ("box_classifier/predictor/class_scores", ("kernel", "bias"), 3, 5),
    ("box_classifier/predictor/box_refinement", ("kernel", "bias"), 4, 5),
]
API_NAMES = {
    "feature_extractor/Mixed_3b/conv/kernel": "FirstStageFeatureExtractor/InceptionV2/Mixed_3b/conv/weights",
    "rpn/conv/kernel": "Conv/weights",
    "rpn/conv/bias": "Conv/biases",
}


def make_rows(fresh=()):
    return [
        VariableRow(
            path=f"{layer}/{leaf}",
            shape=(2, 3),
            restored=not any(f"{layer}/{leaf}".startswith(prefix) for prefix in fresh),
            api_name=API_NAMES.get(f"{layer}/{leaf}"),
            statistic=leaf.startswith("moving_"),
            layer_index=index,
            layer_count=count,
        )
        for layer, leaves, index, count in LAYERS
        for leaf in leaves
    ]


ROWS = make_rows()
PATHS = [row.path for row in ROWS]
STATISTICS = {row.path for row in ROWS if row.statistic}


def below(*layers):
    """Every path that starts with one of the texts; an independent reading of a prefix."""
    return {path for path in PATHS if path.startswith(layers)}


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


class Norms(tf_keras.layers.Layer):
    """A stage: convolution, normalisation, pooling."""

    def __init__(self, norm=BatchNorm, **kwargs):
        super().__init__(**kwargs)
        self.conv = tf_keras.layers.Conv2D(3, 1, use_bias=False)
        self.BatchNorm = norm()
        self.pool = tf_keras.layers.MaxPool2D()

    def call(self, inputs, training=False):
        return self.pool(self.BatchNorm(self.conv(inputs), training=training))


class ConvNorm(tf_keras.layers.Conv2D):
    """A convolution that holds its normalisation: a layer with variables of its own and a layer inside."""

    def __init__(self, **kwargs):
        super().__init__(3, 1, use_bias=False, **kwargs)
        self.BatchNorm = BatchNorm()

    def call(self, inputs, training=False):
        return self.BatchNorm(super().call(inputs), training=training)


class Nested(Component):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.Mixed_1a = ConvNorm()
        self.Mixed_1b = ConvNorm()

    def call(self, inputs, training=False):
        return self.Mixed_1b(self.Mixed_1a(inputs, training=training), training=training)[:, ::4, ::4]


class Tiny(Component):
    def __init__(self, norm=BatchNorm, **kwargs):
        super().__init__(**kwargs)
        self.Mixed_1a = Norms(norm)
        self.Mixed_1b = Norms(norm)

    def call(self, inputs, training=False):
        return self.Mixed_1b(self.Mixed_1a(inputs, training=training), training=training)


class Head(Component):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.predictor = tf_keras.layers.Dense(2)

    def call(self, inputs, training=False):
        return self.predictor(inputs)


def tiny_model(norm=BatchNorm):
    components = {"feature_extractor": Tiny(norm), "box_classifier": Head()}
    run(components, training=False)
    return components


def run(components, training):
    images = tf.reshape(tf.sin(tf.range(2 * 4 * 4 * 3, dtype=tf.float32) * 7.0), [2, 4, 4, 3])
    return components["box_classifier"](components["feature_extractor"](images, training=training))


def train(components, plan, steps=2):
    """Take steps of gradient descent on what `plan` trains; return the paths that changed."""
    variables = named_variables(components)
    trained = plan.apply(components)
    before = {path: variable.numpy() for path, variable in variables.items()}

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(run(components, training=True) - 1.0))
        for variable, gradient in zip(trained, tape.gradient(loss, trained), strict=True):
            variable.assign_sub(0.01 * gradient)

    for _ in range(steps):
        step()
    return {path for path, variable in variables.items() if (variable.numpy() != before[path]).any()}


def all_restored(components):
    return rows_of(components, restored=named_variables(components))


def test_rows_of_a_model():
    components = tiny_model()
    api_names = {"box_classifier/predictor/kernel": "SecondStageBoxPredictor/weights"}
    rows = rows_of(components, restored=["box_classifier/predictor/bias"], api_names=api_names)
    by_path = {row.path: row for row in rows}
    assert list(by_path) == list(named_variables(components))
    mean = by_path["feature_extractor/Mixed_1b/BatchNorm/moving_mean"]
    assert mean == VariableRow(mean.path, (3,), False, None, statistic=True, layer_index=4, layer_count=6)
    assert by_path["box_classifier/predictor/kernel"] == VariableRow(
        "box_classifier/predictor/kernel", (3, 2), False, "SecondStageBoxPredictor/weights", False, 0, 1
    )
    assert [row.path for row in rows if row.restored] == ["box_classifier/predictor/bias"]
    assert sum(row.statistic for row in rows) == 4
    alone = rows_of({"box_classifier": components["box_classifier"].predictor})
    assert [(row.path, row.layer_index, row.layer_count) for row in alone] == [
        ("box_classifier/kernel", None, None),
        ("box_classifier/bias", None, None),
    ]
    with pytest.raises(ValueError, match="restored variables that the model does not have: rpn/conv/kernel"):
        rows_of(components, restored=["rpn/conv/kernel"])


@pytest.mark.parametrize(
    "selector", ["feature_extractor[:1]", "feature_extractor[1:5]", "feature_extractor[-2:]"]
)
def test_index_slices_are_slices_of_component_layers(selector):
    components = tiny_model()
    start, stop = (int(text) if text else None for text in selector[18:-1].split(":"))
    layers = components["feature_extractor"].layers[start:stop]
    wanted = {id(variable) for layer in layers for variable in layer.variables}
    rows = all_restored(components)
    matched = {row.path for row in rows if id(named_variables(components)[row.path]) in wanted}
    assert select(selector, rows) == matched != set()


MODEL_PARTS = ["feature_extractor/Mixed_1a", "feature_extractor/Mixed_1b/BatchNorm", "box_classifier"]
SUBSETS = [",".join(parts) or "none" for n in range(3) for parts in combinations(MODEL_PARTS, n)]


@pytest.mark.parametrize("batch_norm", ["fixed", "update"])
@pytest.mark.parametrize("freeze", [*SUBSETS, "re:/(gamma|kernel)$"])
def test_what_changes_is_exactly_what_the_plan_says(freeze, batch_norm):
    components = tiny_model()
    plan = resolve(all_restored(components), freeze=freeze, batch_norm=batch_norm)
    changed, expected = train(components, plan), {*plan.trained, *plan.updated}
    assert changed == expected, f"missing {expected - changed}, extra {changed - expected}"


@pytest.mark.parametrize("batch_norm", ["fixed", "update"])
@pytest.mark.parametrize(
    "freeze", ["re:kernel$", "**/BatchNorm", "feature_extractor[:1]", "feature_extractor[1:]"]
)
def test_a_layer_inside_a_layer_has_a_fate_of_its_own(freeze, batch_norm):
    components = {"feature_extractor": Nested(), "box_classifier": Head()}
    run(components, training=False)
    plan = resolve(all_restored(components), freeze=freeze, batch_norm=batch_norm)
    assert train(components, plan) == {*plan.trained, *plan.updated}


def test_apply_returns_the_trained_variables_in_model_order():
    components = tiny_model()
    plan = resolve(all_restored(components), freeze="feature_extractor/Mixed_1a")
    variables = named_variables(components)
    assert [id(v) for v in plan.apply(components)] == [id(variables[p]) for p in variables if plan.trains(p)]


def test_apply_sets_trainable_and_fixed_statistics_and_can_be_repeated():
    components = tiny_model()
    rows = all_restored(components)
    extractor = components["feature_extractor"]
    first, second = extractor.Mixed_1a, extractor.Mixed_1b

    resolve(rows, freeze="feature_extractor", batch_norm="update").apply(components)
    assert extractor.trainable_variables == []
    assert not extractor.trainable and not first.conv.trainable and not second.BatchNorm.trainable
    assert first.BatchNorm.fixed_statistics and second.BatchNorm.fixed_statistics
    assert components["box_classifier"].predictor.trainable

    resolve(rows, freeze="box_classifier,feature_extractor[:Mixed_1a]", batch_norm="update").apply(components)
    assert extractor.trainable and second.conv.trainable and second.BatchNorm.trainable
    assert not first.conv.trainable and not components["box_classifier"].predictor.trainable
    assert first.BatchNorm.fixed_statistics and not second.BatchNorm.fixed_statistics

    resolve(rows, freeze="none", batch_norm="fixed").apply(components)
    assert first.conv.trainable and first.BatchNorm.trainable and first.BatchNorm.fixed_statistics
    assert len(extractor.trainable_variables) == 6


def test_widening_and_narrowing_train_the_new_plan():
    components = tiny_model()
    rows = all_restored(components)
    for freeze in ("feature_extractor", "feature_extractor/Mixed_1a", "none", "box_classifier"):
        plan = resolve(rows, freeze=freeze, batch_norm="fixed")
        assert train(components, plan, steps=1) == set(plan.trained)


def test_a_plan_of_another_model_is_refused():
    components = tiny_model()
    rows = all_restored(components)
    missing = {"box_classifier": components["box_classifier"]}
    with pytest.raises(
        FreezeError, match=r"another model .only in the plan: feature_extractor/Mixed_1a/conv/ker"
    ):
        resolve(rows).apply(missing)
    with pytest.raises(FreezeError, match="only in the model: box_classifier/predictor/bias"):
        resolve([row for row in rows if row.path != "box_classifier/predictor/bias"]).apply(components)
    wider = VariableRow("box_classifier/predictor/kernel", (3, 91), True)
    with pytest.raises(FreezeError, match="of another shape: box_classifier/predictor/kernel"):
        resolve([wider if row.path == wider.path else row for row in rows]).apply(components)


def test_a_batch_norm_that_cannot_be_fixed_is_named():
    components = tiny_model(norm=tf_keras.layers.BatchNormalization)
    rows = all_restored(components)
    with pytest.raises(TypeError, match="feature_extractor/Mixed_1a/BatchNorm is a BatchNormalization"):
        resolve(rows, batch_norm="fixed").apply(components)
    resolve(rows, freeze="feature_extractor", batch_norm="fixed").apply(
        components
    )  # trainable=False is enough
