"""The direction of imports: from the tools down to the boxes, without circles."""

import ast
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [path for folder in ("detector", "data", "tools") for path in sorted((ROOT / folder).rglob("*.py"))]

# From the top to the bottom; a module may import from lower rows, and from its own.  What is above `freeze`,
# `checkpoint` and `weights` they cannot import: they receive a model and never build one.
LAYERS = [
    {"benchmark", "sweep_report"},
    {"train", "training_loop", "training_step", "progression", "optimizer", "schedule", "cost"}
    | {"evaluate", "export", "export_check", "score_change", "loading", "reference", "plan_record"}
    | {"experiment", "diagnose", "diagnosis_report", "freeze_suggestion", "auto_freeze"}
    | {"sweep", "sweep_advice", "sweep_config", "sweep_disagreements", "sweep_figures", "sweep_runs"}
    | {"sweep_table"},
    {"builder"},
    {"feature_cache"},
    {"frozen_prefix"},
    {
        "freeze",
        "freeze_presets",
        "freeze_schedule",
        "freeze_proof",
        "provenance",
        "plan_compare",
        "plan_table",
    }
    | {"checkpoint", "run_log", "weights"},
    # The layers below take plain values.
    {"config", "config_reference", "data_config", "freeze_config", "model_config", "train_config"}
    | {"pipeline_augmentation", "pipeline_config", "pipeline_fields", "pipeline_model"}
    | {"pipeline_training"},
    {"faster_rcnn"},
    {"rpn", "box_classifier", "feature_extractors", "recomputation"},
    {"batch_norm", "sparse_convolution", "convolution_gradients"},
    {"winograd", "winograd_large"},
    {"minimal_filtering"},
    {"anchors", "boxes", "sampling", "suppression"},
    # What knows nothing of detectors, or only their words.
    {"component", "selectors", "resizer", "encoded_image", "label_map", "drawing"}
    | {"coco_metrics", "paired_interval", "score_table"}
    | {
        "array_file",
        "cache_folder",
        "digest",
        "held_file",
        "plain_path",
        "owned_folder",
        "whole_folder",
        "run_lock",
        "run_page",
        "stop_requests",
    }
    | {"config_section", "protobuf_text", "strict_yaml"}
    | {"bfloat16", "determinism", "graph_rewriting", "lasting_output", "progress", "reload_alone"},
    {"allocation", "cpu", "optional_imports"},
]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path):
    """Yield every module that the file imports, anywhere in it; those for type checking do not run."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_who_may_import_whom(path):
    forbidden = {"detector": {"data", "tools"}, "data": {"detector", "tools"}, "tools": set()}
    package = path.relative_to(ROOT).parts[0]
    imported = {name.split(".")[0] for name in imports_of(path)}
    assert not imported & forbidden[package]
    assert not imported & {"keras"}, "Keras 3 objects do not mix with tf_keras"


def test_there_are_no_circles():
    names = {module_name(path) for path in FILES}
    graph = {module_name(path): names & set(imports_of(path)) - {module_name(path)} for path in FILES}
    assert list(TopologicalSorter(graph).static_order())


def room_of(module):
    """Return the `weights` of `detector.weights.plan`."""
    return module.split(".")[1]


IN_DETECTOR = [path for path in FILES if module_name(path).startswith("detector.")]


def test_every_room_has_one_layer():
    rooms = sorted({room_of(module_name(path)) for path in IN_DETECTOR})
    assert sorted(room for rooms in LAYERS for room in rooms) == rooms


@pytest.mark.parametrize("path", IN_DETECTOR, ids=lambda path: path.stem)
def test_imports_point_down(path):
    depths = {room: depth for depth, rooms in enumerate(LAYERS) for room in rooms}
    own = module_name(path)
    for name in imports_of(path):
        if name.startswith("detector."):
            assert depths[room_of(name)] >= depths[room_of(own)], f"{own} imports {name}, which is above it"


# What is imported under another name than it is installed by.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "official": "tf-models-official",
    "yaml": "pyyaml",
}


def test_what_is_imported_is_declared():
    tomllib = pytest.importorskip("tomllib", reason="of Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.match(r"[\w-]+", line)[0].lower() for line in project["dependencies"]}
    # The original runs in an environment of its own.
    files = [path for path in FILES if path.name != "object_detection_api.py"]
    imported = {name.split(".")[0] for path in files for name in imports_of(path)}
    own = {"detector", "data", *(path.stem for path in (ROOT / "tools").glob("*.py"))}
    others = imported - own - sys.stdlib_module_names
    assert {"tensorflow", "yaml"} < others
    assert {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in others} <= declared
