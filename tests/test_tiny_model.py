"""What the tests of a whole detector stand on: every one of them starts from the same."""

from conftest import Models, values_of

from detector.freeze import resolve, rows_of
from detector.recomputation import recompute


def test_a_detector_that_was_lent_before_is_as_good_as_new():
    models = Models()
    model = models.lend()
    before, trainable = values_of(model.variables_by_path), [v.name for v in model.trainable_variables]
    rows = rows_of(model.components, restored=before)
    resolve(rows, ["feature_extractor"], batch_norm="fixed").apply(model.components)
    recompute(model.components, rows, ["box_classifier/tower"])
    for variable in model.variables_by_path.values():
        variable.assign_add(variable + 1)
    assert models.lend() is not model
    models.take_back()

    again = {id(found): found for found in (models.lend(), models.lend())}[id(model)]
    assert [v.name for v in again.trainable_variables] == trainable
    assert not again.box_classifier.tower.recomputed
    assert not any(getattr(layer, "fixed_statistics", False) for layer in again.submodules)
    after = values_of(again.variables_by_path)
    assert all(after[path].tobytes() == value.tobytes() for path, value in before.items())


def test_a_detector_that_was_built_on_to_is_not_lent_again():
    models = Models()
    model = models.lend()
    model.rpn.spare = model.rpn.objectness
    models.take_back()
    assert models.lend() is not model
