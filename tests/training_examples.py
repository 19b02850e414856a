"""Plans and batches for tests that train the tiny model."""

import itertools

from detector.freeze import resolve, rows_of


def plan_of(model, freeze=(), batch_norm="update", **keywords):
    """Resolve selectors as if every variable had been restored."""
    rows = rows_of(model.components, restored=model.variables_by_path)
    return resolve(rows, freeze, batch_norm=batch_norm, **keywords)


def cheap_plan_of(model):
    """Return a plan with little to differentiate, where it does not matter what trains."""
    return plan_of(model, ["all_but:box_classifier/predictor"])


def changed_paths(before, after):
    assert before.keys() == after.keys()
    return {path for path in before if before[path].tobytes() != after[path].tobytes()}


def batches(make_batch, start=0):
    return (make_batch(step) for step in itertools.count(start))
