import argparse

import command_line
import pytest

from detector.config import ConfigError
from detector.freeze_config import FreezeConfig
from detector.sweep_config import Variant, parse_variant, read_sweep, with_reference


def test_variants_from_a_file_and_from_the_command_line(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "config: base.yaml\nset: [train.steps=5]\nvariants:\n"
        "  - {name: early, freeze: 'feature_extractor[:Mixed_3c], rpn'}\n"
        "  - {name: predictor, train_only: [box_classifier/predictor]}\n"
    )
    sweep = read_sweep(path)
    assert sweep.config == tmp_path / "base.yaml" and sweep.set == ("train.steps=5",)
    early, predictor = sweep.variants
    assert early.options == ["--freeze", "feature_extractor[:Mixed_3c]", "--freeze", "rpn"]
    assert predictor.options == ["--train-only", "box_classifier/predictor"]
    assert parse_variant("bn=re:Batch.*,x=1").freeze == ("re:Batch.*,x=1",)
    variants = with_reference([early, predictor])
    assert [v.name for v in variants] == ["none", "early", "predictor"]
    assert variants[0].options == ["--freeze", "none"]
    assert [v.name for v in with_reference([early, Variant(name="none")])] == ["none", "early"]
    narrow = Variant(name="narrow", freeze=("rpn",), set=("model.precision=bfloat16", "train.views=2"))
    assert narrow.options == [
        *("--freeze", "rpn", "--set", "model.precision=bfloat16", "--set", "train.views=2")
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: parse_variant("rpn"), "takes name=selectors"),
        (lambda: parse_variant("../x=rpn"), "--variant ../x=rpn"),
        (lambda: with_reference([Variant(name="a"), Variant(name="a")]), "two variants are called 'a'"),
        (lambda: with_reference([parse_variant("none=rpn")]), "'none' is full fine-tuning"),
        (
            lambda: with_reference([Variant(name="none", freeze_schedule="gradual")]),
            "'none' is full fine-tuning",
        ),
        (
            lambda: with_reference([Variant(name="none", set=("train.views=2",))]),
            "'none' is full fine-tuning",
        ),
    ],
)
def test_mistakes_in_variants(make, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        make()


def test_a_mistake_in_the_file_names_the_key(tmp_path):
    (tmp_path / "sweep.yaml").write_text("variants: [{name: a, freze: rpn}]")
    with pytest.raises(ConfigError, match=r"sweep.yaml: variants.0.freze: "):
        read_sweep(tmp_path / "sweep.yaml")


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("freeze_schedule: gradual", ["--gradual"]),
        ("freeze_schedule: linear_probe", ["--linear-probe"]),
        ("layers: 4+", ["--layers", "4+"]),
        (
            "freeze: [box_classifier, rpn], freeze_schedule: [{from_step: 5, unfreeze: [rpn]},"
            " {from_step: 9, unfreeze: [box_classifier/tower, 're:a,b=.*']}]",
            [
                *("--freeze", "box_classifier", "--freeze", "rpn"),
                *("--unfreeze-at", "5:rpn", "--unfreeze-at", "9:box_classifier/tower,re:a,b=.*"),
            ],
        ),
        (  # Behind a comma after it the next selector would be part of the pattern.
            "freeze: rpn, freeze_schedule: [{from_step: 5, unfreeze: ['re:a', rpn]}]",
            ["--freeze", "rpn", "--set", "freeze_schedule=[{from_step: 5, unfreeze: ['re:a', rpn]}]"],
        ),
        (
            "freeze: 'feature_extractor[:Mixed_4c]', freeze_schedule:"
            " [{from_epoch: 1.5, freeze: [], train_only: ['box_classifier/*'], lr_factor: 0.1}]",
            [
                *("--freeze", "feature_extractor[:Mixed_4c]", "--set"),
                "freeze_schedule="
                "[{from_epoch: 1.5, freeze: [], train_only: [box_classifier/*], lr_factor: 0.1}]",
            ],
        ),
        (
            "freeze: feature_extractor, unfreeze: 'feature_extractor[Mixed_5b:], rpn', allow_fresh: true",
            [
                *("--freeze", "feature_extractor", "--set"),
                *("freeze.unfreeze=['feature_extractor[Mixed_5b:]', rpn]", "--allow-fresh"),
            ],
        ),
    ],
)
def test_the_options_of_a_schedule_make_the_configuration_it_stands_for(variant, options, tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(f"variants: [{{name: a, {variant}}}]")
    (variant,) = read_sweep(path).variants
    assert variant.options == options

    parser = argparse.ArgumentParser()
    command_line.add_config_options(parser)
    command_line.add_freeze_options(parser)
    config = command_line.load_config(parser.parse_args(options))
    assert config.freeze_schedule == variant.freeze_schedule
    assert config.freeze == FreezeConfig(**variant.model_dump(exclude={"name", "freeze_schedule", "set"}))


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (
            "freeze_schedule: grdual",
            "variants.0.freeze_schedule: Input should be 'gradual' or 'linear_probe'",
        ),
        (
            "freeze_schedule: [{unfreeze: [rpn]}]",
            "variants.0.freeze_schedule.0: a freeze stage starts at from_step or at from_epoch: give one",
        ),
        ("layers: 5+", "variants.0.layers: Input should be 'heads', "),
    ],
)
def test_a_mistake_in_a_schedule_is_one_line(variant, message, tmp_path):
    (tmp_path / "sweep.yaml").write_text(f"variants: [{{name: a, {variant}}}]")
    with pytest.raises(ConfigError) as caught:
        read_sweep(tmp_path / "sweep.yaml")
    assert message in str(caught.value) and "\n" not in str(caught.value)
