from pathlib import Path

import pytest
from pipeline_texts import FULL, edited, refused

from detector import config, model_config
from detector.pipeline_config import (
    PipelineConfigError,
    parse_pipeline_config,
    placeholders,
    read_pipeline_config,
)

ORACLE = Path(__file__).parents[2] / "shared" / "oracle" / "reference"


@pytest.mark.parametrize("name", ["faster_rcnn_inception_v2", "faster_rcnn_resnet50_v1"])
def test_oracle_configurations(name):
    path = ORACLE / f"{name}.model.config"
    if not path.exists():
        pytest.skip("needs ../shared/oracle")
    read = read_pipeline_config(path)
    assert read.notes == ()
    model = config.validate(read.values, name).model
    assert model.num_classes == 90
    assert model.anchors == model_config.AnchorsConfig()
    assert model.box_classifier == model_config.BoxClassifierConfig(
        share_box_across_classes=name.endswith("resnet50_v1"),
        batch_size=300 if name.endswith("resnet50_v1") else 64,
    )
    if name.endswith("inception_v2"):
        assert model.rpn == model_config.RpnConfig()
        assert model.resizer == model_config.FixedShapeConfig(kind="fixed_shape", height=512, width=512)
        assert model.feature_extractor.type == "inception_v2"
    else:
        assert model.rpn == model_config.RpnConfig(minibatch_size=200000, clip_anchors=True)
        assert model.resizer == model_config.KeepAspectRatioConfig(
            kind="keep_aspect_ratio", min_dimension=640, max_dimension=640, pad=True
        )
        assert (model.feature_extractor.type, model.feature_extractor.topology) == ("resnet50", "keras")


def test_paths_that_a_published_file_leaves_open():
    text = edited(('["a.record", "b.record"]', '["a.record", "PATH_TO_BE_CONFIGURED/b.record"]'))
    text = text.replace("cells.pbtxt", "PATH_TO_BE_CONFIGURED/label_map.txt")
    assert list(placeholders(parse_pipeline_config(text).values)) == [
        "data.train.label_map",
        "data.evaluate.path",
    ]
    assert list(placeholders(parse_pipeline_config(FULL).values)) == []


def test_one_of_several_options_is_named_by_its_number():
    flip = "data_augmentation_options { random_horizontal_flip {} }"
    text = edited((flip, flip + " data_augmentation_options { random_jitter_boxes {} }"))
    assert set(refused(text)) == {"train_config.data_augmentation_options[1].random_jitter_boxes"}


def test_values_read_like_the_file():
    text = edited(
        ("use_dropout: true", "predict_keypoints: true"),
        ("random_horizontal_flip {}", "random_jitter_boxes { ratio: 0.1 }"),
    )
    assert [note.value for note in parse_pipeline_config(text).notes] == ["true", "{ … }"]


def test_a_text_that_is_none_and_a_file_that_is_not_there(tmp_path):
    with pytest.raises(PipelineConfigError, match=r"x\.config:1:9: expected the name of a field or '}'"):
        parse_pipeline_config("model { ", "x.config")
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.config"):
        read_pipeline_config(tmp_path / "none.config")
    (tmp_path / "binary.config").write_bytes(b"\x0a\xff")
    with pytest.raises(
        PipelineConfigError, match=r"binary\.config: expected UTF-8 text, got other bytes at 1"
    ):
        read_pipeline_config(tmp_path / "binary.config")
    assert refused("") == {"faster_rcnn": "expected a faster_rcnn { … }"}
