from pathlib import Path

import pytest

from detector.config import Config, ConfigError, load, override
from detector.sweep_config import is_sweep

CONFIGS = [
    path for path in sorted((Path(__file__).parents[1] / "configs").glob("*.yaml")) if not is_sweep(path)
]


def write(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid(path):
    assert isinstance(load(path), Config)


def test_a_resolved_configuration_reads_back_equal(tmp_path):
    config = load(CONFIGS[0], ["train.steps=7", "data.augment=[{name: HorizontalFlip, p: 0.5}]"])
    assert load(write(tmp_path / "config.yaml", config.to_yaml())) == config


def test_a_resolved_configuration_with_adamw_reads_back_equal(tmp_path):
    config = load(None, ["train.optimizer={kind: adamw, weight_decay: 0.1}"])
    assert load(write(tmp_path / "config.yaml", config.to_yaml())) == config


def test_null_takes_back_the_factors_of_a_base(tmp_path):
    write(tmp_path / "base.yaml", "train: {lr_factors: {feature_extractor: 0.1}}")
    write(tmp_path / "own.yaml", "base: base.yaml\ntrain: {lr_factors: null}")
    assert load(tmp_path / "own.yaml").train.lr_factors == {}


def test_the_defaults_are_the_published_ones():
    model = Config().model
    assert (model.rpn.minibatch_size, model.rpn.max_proposals, model.rpn.nms_iou_threshold) == (256, 300, 0.7)
    assert (model.box_classifier.batch_size, model.box_classifier.positive_fraction) == (64, 0.25)
    assert (model.box_classifier.crop_size, model.box_classifier.pool_size) == (14, 2)
    assert (model.resizer.min_dimension, model.resizer.max_dimension) == (600, 1024)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("train.stesp=3", "train.steps"),
        ("model.rpn.max_proposal=3", "model.rpn.max_proposals"),
        ("freezing=none", "freeze"),
        ("data.train={format: voc, rot: here}", "data.train.root"),
    ],
)
def test_an_unknown_key_names_the_nearest(text, nearest):
    with pytest.raises(ConfigError, match=f"unknown key '.*'; nearest: '{nearest}'"):
        load(None, [text])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.steps=0", "train.steps: .*greater than or equal to 1, got 0"),
        ("train.steps=many", "train.steps: .*integer.*got 'many'"),
        ("train.steps", "takes key=value"),
        (
            "model.resizer={kind: keep_aspect_ratio, min_dimension: 700, max_dimension: 600}",
            "min_dimension 700",
        ),
        ("train.optimizer.weight_decay=0.1", "weight_decay goes with kind: adamw"),
        ("train.optimizer.beta_2=0.9", "beta_2 goes with kind: adamw"),
        ("train.optimizer={kind: adamw, momentum: 0.5}", "momentum goes with kind: sgd"),
        ("train.optimizer={kind: adamw, nesterov: true}", "nesterov goes with kind: sgd"),
        ("train.clip_norm=.inf", "train.clip_norm: .*finite number, got inf"),
        ("train.learning_rate.base=.nan", "train.learning_rate.base: .*finite number, got nan"),
        ("train.lr_factors={rpn: .nan}", "train.lr_factors.rpn: .*finite number, got nan"),
        ("train.lr_factors={rpn: .inf}", "train.lr_factors.rpn: .*finite number, got inf"),
        ("model.anchors.offset_hw=[0, -.inf]", r"model.anchors.offset_hw.1: .*finite number, got -inf"),
        ("model.box_classifier.crop_size=1", "pool_size 2 is larger than crop_size 1"),
        ("model.box_classifier.pool_size=15", "pool_size 15 is larger than crop_size 14"),
        (
            "train.learning_rate={schedule: step, boundaries: [5], values: []}",
            "1 boundaries need as many values",
        ),
        ("train.learning_rate={schedule: step, boundaries: [5, 5], values: [1, 1]}", "boundaries must rise"),
        ("train.learning_rate={boundaries: [5], values: [1]}", r"with it alone; another has \[\] for both"),
        (
            "train.learning_rate={base: 0.01, warmup_steps: 9, warmup_start: 0.02}",
            "train.learning_rate: warmup_start 0.02 is above base 0.01, which the warmup rises to; lower it",
        ),
        ("model.anchors.scales=[]", r"model.anchors.scales: .*at least 1 item"),
        ("model.anchors.aspect_ratios=[1, 0]", r"model.anchors.aspect_ratios.1: .*greater than 0, got 0"),
        ("model.anchors.stride_hw=[16, 0]", r"model.anchors.stride_hw.1: .*greater than 0"),
        ("data.train={format: zip}", "data.train: .*'coco', 'voc', 'tfrecord', 'shapes'"),
    ],
)
def test_a_wrong_value_says_what_was_expected_and_what_came(text, message):
    with pytest.raises(ConfigError, match=message):
        load(None, [text])


def test_overrides_take_yaml_values_and_exponents():
    config = load(
        None, ["train.learning_rate.base=1e-3", "train.clip_norm=null", "freeze.freeze=[rpn, none]"]
    )
    assert config.train.learning_rate.base == 0.001
    assert config.train.clip_norm is None
    assert config.freeze.freeze == ("rpn", "none")


def test_a_warmup_may_fall_to_steps_and_is_not_looked_at_where_there_is_none():
    falling = {"base": 0.01, "warmup_start": 0.02}
    assert override({"train": {"learning_rate": falling}}, [], "test").train.learning_rate.base == 0.01
    falling |= {"schedule": "step", "warmup_steps": 9, "boundaries": [20], "values": [0.001]}
    assert override({"train": {"learning_rate": falling}}, [], "test").train.learning_rate.warmup_steps == 9


def test_a_record_alone_is_a_list_of_one():
    source = load(None, ["data.train={format: tfrecord, path: train.record}"]).data.train
    assert source.path == ("train.record",)
    with pytest.raises(ConfigError, match=r"data\.train\.path: "):
        load(None, ["data.train={format: tfrecord, path: 3}"])


def test_a_file_lies_over_its_base(tmp_path):
    write(
        tmp_path / "base.yaml",
        "train: {steps: 5, batch_size: 3}\nmodel: {resizer: {kind: fixed_shape, height: 64, width: 64}}",
    )
    write(
        tmp_path / "own.yaml",
        "base: base.yaml\ntrain: {steps: 9}\nmodel: {resizer: {kind: keep_aspect_ratio}}",
    )
    config = load(tmp_path / "own.yaml")
    assert (config.train.steps, config.train.batch_size) == (9, 3)
    assert config.model.resizer.kind == "keep_aspect_ratio"  # of another kind: nothing of the old one is left


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="no configuration file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="not YAML"):
        load(write(tmp_path / "broken.yaml", "train: ["))
    with pytest.raises(ConfigError, match="expected a mapping of sections, got list"):
        load(write(tmp_path / "list.yaml", "- train"))
    with pytest.raises(ConfigError, match="leads back to itself"):
        load(write(tmp_path / "loop.yaml", "base: loop.yaml"))
    with pytest.raises(ConfigError, match="leads back to itself"):
        load(write(tmp_path / "round.yaml", f"base: ../{tmp_path.name}/round.yaml"))
    with pytest.raises(ConfigError, match=r"several\.yaml: base: expected the name of one file, got \['a'\]"):
        load(write(tmp_path / "several.yaml", "base: [a]"))


def test_a_key_that_is_there_twice_is_an_error(tmp_path):
    path = write(tmp_path / "twice.yaml", "train: {steps: 5}\nfreeze: {}\ntrain: {batch_size: 2}\n")
    with pytest.raises(ConfigError, match=r"(?s)the key 'train' is there twice.*line 3"):
        load(path)
    with pytest.raises(ConfigError, match=r"--set train: not a YAML value"):
        load(None, ["train={steps: 3, steps: 4}"])


def test_a_file_with_a_byte_order_mark(tmp_path):
    (tmp_path / "windows.yaml").write_bytes(b"\xef\xbb\xbftrain: {steps: 5}")
    assert load(tmp_path / "windows.yaml").train.steps == 5


def test_the_origin_is_named():
    with pytest.raises(ConfigError, match=r"^my\.config: unknown key 'x'"):
        override({"x": 1}, [], "my.config")


def test_a_key_of_another_format_is_not_called_unknown():
    with pytest.raises(ConfigError, match=r"'data\.train\.path' goes with another format or kind"):
        override({}, ["data.train={format: voc, root: here, path: there}"], "test")
