import re
import shutil
from pathlib import Path

import plan as plan_tool
import pytest
from conftest import CLASS_NAMES, TINY

from detector import checkpoint
from detector.builder import build_model, build_resizer
from detector.checkpoint import CheckpointInfo
from detector.config import override
from detector.digest import digests
from detector.export import MANIFEST, export, freeze_manifest
from detector.freeze import resolve, rows_of
from detector.freeze_proof import prove
from detector.freeze_suggestion import Suggestion
from detector.run_log import RunLog

pytestmark = pytest.mark.usefixtures("built_once")

CATEGORIES = [{"id": i, "name": name} for i, name in enumerate(CLASS_NAMES, 1)]


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    """The default configuration names data of the checkout."""
    monkeypatch.chdir(Path(__file__).resolve().parents[1])


@pytest.mark.parametrize(
    ("selectors", "state"),
    [
        (["none"], "● trained"),
        (["feature_extractor[:Mixed_4c]"], "◐"),
        (["feature_extractor", "rpn"], "○ frozen"),
    ],
)
def test_the_dry_run_shows_what_a_freeze_would_do(selectors, state, capsys):
    options = [part for selector in selectors for part in ("--freeze", selector)]
    assert (
        plan_tool.main(
            [*options, "--class-names", "circle,square", "--allow-fresh", "--set", "train.restore.path=null"]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert re.search(rf"feature_extractor +251 .*{state}", printed)
    assert re.search(r"Predicted saving: \d+%", printed)
    for selector in selectors:
        assert f"freeze {selector}: " in printed


def test_it_needs_classes(capsys):
    for names, message in (("a,,b", "name 2 is empty"), ("a,b, a", "'a' is there twice"), ("", "name 1 is")):
        assert plan_tool.main(["--class-names", names, "--set", "train.restore.path=null"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: --class-names {names!r}: ") and message in error
    assert plan_tool.main(["--set", "data.train=null", "--set", "train.restore.path=null"]) == 2
    assert "set data.train" in capsys.readouterr().err


@pytest.mark.usefixtures("few_shapes")
def test_auto_prints_its_reasons_and_its_plan(monkeypatch, capsys, tmp_path):
    def auto_freeze(model, batches, *, restored):
        assert not restored and len(next(iter(batches))["image"]) == 8
        return Suggestion(("rpn",), ("train feature_extractor: it moves", "freeze rpn: it is still"))

    monkeypatch.setattr("detector.auto_freeze.auto_freeze", auto_freeze)
    start = ["--freeze", "auto", "--allow-fresh", "--set", "train.restore.path=null"]
    assert plan_tool.main([*start, "--set", f"data.train.root={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "--freeze rpn\n  freeze rpn: it is still\n  train feature_extractor: it moves\n" in printed
    assert "freeze rpn: matches 6 variables" in printed
    assert plan_tool.main([*start, "--class-names", "circle,square"]) == 2
    assert "leave out --class-names" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A start, and a run from it: the RPN frozen up to step 4, then the tower too, up to step 8."""
    folder = tmp_path_factory.mktemp("trained")
    config = override(TINY, (), "tiny")
    model = build_model(config.model, CLASS_NAMES)
    variables = model.variables_by_path
    page = {"categories": CATEGORIES, "model": config.model.model_dump(mode="json")}
    checkpoint.save(folder / "start", CheckpointInfo(step=900, **page), variables)
    run = RunLog(folder / "run")
    run.write_text("config.yaml", config.to_yaml())
    rows = rows_of(model.components, variables)
    proofs = []
    for step, freeze in [(4, ["rpn"]), (8, ["rpn", "box_classifier/tower"])]:
        plan = resolve(rows, freeze)
        frozen = {path: variables[path] for path in plan.frozen}
        before = digests(frozen)
        for path in plan.trained:
            variables[path].assign_add(variables[path] + 1.0)
        provenance = {"rpn": {"checkpoint": "start", "restored": 6, "fresh": []}}
        info = CheckpointInfo(
            step=step,
            **page,
            plan=plan.to_dict(),
            provenance=provenance,
            training={"frozen_digests": before, "proofs": list(proofs)},
        )
        run.point("last", checkpoint.save(run.checkpoint_path(step), info, variables))
        proofs.append(prove(before, frozen, step, provenance).to_dict())
    manifest = {**freeze_manifest(model, info), "proofs": info.training["proofs"]}
    with pytest.MonkeyPatch.context() as patch:
        # What it serves is not looked at, and takes seconds to trace.
        patch.setattr("detector.export.serving_functions", lambda *_: {})
        resizer = build_resizer(config.model)
        export(model, resizer, folder / "saved_model", categories=CATEGORIES, manifest=manifest)
    return folder


@pytest.mark.parametrize("model", ["run", "run/checkpoints/step-000008", "saved_model"])
def test_a_model_shows_its_plan_and_its_proof(model, trained, capsys):
    assert plan_tool.main([str(trained / model)]) == 0
    printed = capsys.readouterr().out
    assert "step 8" in printed.splitlines()[0]
    assert re.search(r"rpn +6 .*○ frozen", printed) and re.search(
        r"feature_extractor +251 .*● trained", printed
    )
    assert "freeze box_classifier/tower: matches 95 variables" in printed
    assert "rpn: 6 variables restored from start\n" in printed
    assert "earlier freeze stages ended at step 4" in printed
    assert re.search(r"proof: all \d+ frozen variables are bit-identical before and after 8 steps", printed)


def test_a_model_that_was_not_trained_has_no_plan(trained, capsys):
    assert plan_tool.main([str(trained / "start")]) == 0
    assert "carries no freeze plan" in capsys.readouterr().out


@pytest.mark.parametrize("b", ["run", "saved_model"])
def test_verify_holds_a_run_to_what_stood_still_all_the_way(b, trained, capsys):
    assert plan_tool.main(["--verify", str(trained / "start"), str(trained / b)]) == 0
    printed = capsys.readouterr().out
    # The tower moved in the first freeze stage, as planned; its moving averages did not.
    assert re.search(r"^rpn +6 +6$", printed, re.MULTILINE)
    assert "BROKEN" not in printed and re.search(r"all \d+ variables that B's plan freezes are", printed)
    assert re.search(r"^box_classifier/tower/Mixed_5a +10 +15 +10$", printed, re.MULTILINE)


def test_verify_within_a_run_holds_the_present_freeze_stage_to_its_plan(trained, capsys):
    checkpoints = trained / "run" / "checkpoints"
    first, last = (str(checkpoints / f"step-00000{step}") for step in (4, 8))
    assert plan_tool.main(["--verify", first, last]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^box_classifier/tower/Mixed_5a +25 +25$", printed, re.MULTILINE)


def test_verify_finds_what_moved_although_it_is_frozen(trained, tmp_path, capsys):
    folder = trained / "run" / "checkpoints" / "step-000004"
    info = checkpoint.read_info(folder)
    model = build_model(override(TINY, (), "tiny").model, CLASS_NAMES)
    checkpoint.restore(folder, model.variables_by_path)
    model.rpn.conv.bias.assign(model.rpn.conv.bias + 1e-7)
    checkpoint.save(tmp_path / "moved", info, model.variables_by_path)
    assert plan_tool.main(["--verify", str(trained / "start"), str(tmp_path / "moved")]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "rpn 5 1 1 of 6 BROKEN" in printed and "differ: rpn/conv/bias" in printed
    # The record itself shows it, too.
    assert plan_tool.main([str(tmp_path / "moved")]) == 1
    assert "proof FAILED: 1 of" in capsys.readouterr().out


def test_a_savedmodel_whose_values_are_not_its_manifests_is_damaged(trained, tmp_path, capsys):
    shutil.copytree(trained / "saved_model", tmp_path / "altered")
    page = (tmp_path / "altered" / MANIFEST).read_text()
    entry = re.search(r'"rpn/conv/kernel": "(\w{64})"', page)
    (tmp_path / "altered" / MANIFEST).write_text(page.replace(entry[0], '"rpn/conv/kernel": "00"'))
    assert plan_tool.main([str(tmp_path / "altered")]) == 2
    assert "1 values differ from the digests in" in capsys.readouterr().err
    (tmp_path / "altered" / MANIFEST).write_text("{}")
    assert plan_tool.main([str(tmp_path / "altered")]) == 2
    assert "lacks step, plan, digests" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["some/run", "--freeze", "rpn"], "--freeze is for a dry run"),
        (["--verify", "a", "b", "--class-names", "c"], "--class-names is for a dry run"),
        (["some/run", "--verify", "a", "b"], "leave out MODEL"),
    ],
)
def test_options_that_mean_nothing_together_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        plan_tool.main(arguments)
    assert message in capsys.readouterr().err


def test_a_users_mistake_is_one_line(capsys):
    assert plan_tool.main(["nowhere"]) == 2
    assert "there is nothing at nowhere" in capsys.readouterr().err
    assert plan_tool.main(["--checkpoint", "last"]) == 2
    assert "name the run" in capsys.readouterr().err


def test_a_learning_rate_factor_that_does_nothing_is_told(capsys):
    factors = "train.lr_factors={feature_extractor: 0.1, rpn: 0.5}"
    assert plan_tool.main(["--class-names", "a,b,c,d", "--freeze", "rpn", "--set", factors]) == 0
    printed = capsys.readouterr().out
    assert "train.lr_factors: rpn does nothing: all that it matches is frozen throughout" in printed
    assert "feature_extractor does nothing" not in printed


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.steps=6", "warmup_steps 30 leave nothing of the cosine's 6 steps"),
        ("train.lr_factors={feature_extractr: 0.1}", "'feature_extractr' matches nothing; nearest:"),
        ("train.patience=2", "train.patience 2 counts evaluations during training"),
        ("train.recompute=[nope]", "train.recompute selector 'nope' matches nothing"),
        ("data.augment=[{name: HorizontlFlip}]", "HorizontlFlip"),
    ],
)
def test_what_would_fail_later_fails_in_the_dry_run(setting, message, capsys):
    arguments = ["--class-names", "a,b,c,d", "--set", setting]
    assert plan_tool.main(arguments) == 2
    assert message in capsys.readouterr().err
