import convert_config as convert_config_tool
import pytest

from detector.config import load

PIPELINE = """
model { faster_rcnn {
  num_classes: 2
  image_resizer { fixed_shape_resizer { height: 320 width: 400 } }
  feature_extractor { type: 'faster_rcnn_inception_v2' }
  first_stage_anchor_generator { grid_anchor_generator { scales: [0.5, 1.0] aspect_ratios: [1.0] } }
  first_stage_box_predictor_conv_hyperparams {
    op: CONV regularizer { l2_regularizer { weight: 0.0 } }
    initializer { truncated_normal_initializer { stddev: 0.01 } }
  }
  first_stage_max_proposals: 77
  initial_crop_size: 14 maxpool_kernel_size: 2 maxpool_stride: 2
  second_stage_box_predictor { mask_rcnn_box_predictor { fc_hyperparams {
    op: FC regularizer { l2_regularizer { weight: 0.0 } }
    initializer { variance_scaling_initializer { factor: 1.0 uniform: true mode: FAN_AVG } }
  } } }
  second_stage_post_processing {
    batch_non_max_suppression { iou_threshold: 0.6 max_detections_per_class: 100 max_total_detections: 300 }
    score_converter: SOFTMAX
  }
} }
train_config {
  batch_size: 3 num_steps: 40
  optimizer { momentum_optimizer {
    learning_rate { constant_learning_rate { learning_rate: 0.002 } } momentum_optimizer_value: 0.8
  } }
  freeze_variables: 'FirstStageFeatureExtractor/.*'
}
train_input_reader { label_map_path: 'labels.pbtxt' tf_record_input_reader { input_path: 'train.record' } }
"""


def test_the_yaml_reads_back(tmp_path, capsys):
    pipeline, output = tmp_path / "pipeline.config", tmp_path / "new" / "mine.yaml"
    pipeline.write_text(PIPELINE)
    assert convert_config_tool.main([str(pipeline), "--output", str(output)]) == 0
    config = load(output)
    assert (config.model.resizer.height, config.model.rpn.max_proposals) == (320, 77)
    assert (config.train.batch_size, config.train.steps, config.train.optimizer.momentum) == (3, 40, 0.8)
    assert config.freeze.freeze == ("api:FirstStageFeatureExtractor/.*",)
    assert convert_config_tool.main([str(pipeline), "--output", str(output)]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"), [("faster_rcnn {", "ssd {", "ssd"), ("77", "x y", ":12:")]
)
def test_what_cannot_be_read_is_one_error(old, new, message, tmp_path, capsys):
    pipeline = tmp_path / "pipeline.config"
    pipeline.write_text(PIPELINE.replace(old, new))
    assert convert_config_tool.main([str(pipeline)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error
