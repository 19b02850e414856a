"""Detectors of full size, for tests of the weights that they take from files."""

from detector.builder import build_model
from detector.config import validate


def build(network, topology=None, class_names=("a", "b"), **box_classifier):
    extractor = {"type": network, **({"topology": topology} if topology else {})}
    section = {"feature_extractor": extractor, "box_classifier": box_classifier}
    return build_model(validate({"model": section}, "test").model, class_names)


def backbone_of(model):
    return {
        p for p in model.variables_by_path if p.startswith(("feature_extractor/", "box_classifier/tower/"))
    }
