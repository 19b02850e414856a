from itertools import combinations

import pytest
import tensorflow as tf
import tf_keras

from detector.batch_norm import BatchNorm
from detector.component import Component, named_variables
from detector.freeze import FreezeError, VariableRow, resolve, rows_of
from detector.selectors import select


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
