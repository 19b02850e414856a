"""`--checkpoint best` and `last` choose among a run's checkpoints; of anything else they are refused."""

import diagnose
import evaluate
import export
import plan
import predict
import pytest

TOOLS = [evaluate, export, predict, plan, diagnose]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The files, all empty, by which a run, its checkpoint, its SavedModel and foreign weights are told."""
    monkeypatch.chdir(tmp_path)
    for file in ("config.yaml", "saved_model/saved_model.pb", "checkpoints/step-000004/checkpoint.json"):
        (tmp_path / "run" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / file).touch()
    (tmp_path / "model.ckpt.index").touch()
    (tmp_path / "photo.jpg").touch()


def arguments(tool, model):
    more = ["photo.jpg", "--output", "out"] if tool is predict else []
    return [model, *more, "--checkpoint", "last"]


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.__name__)
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("run/saved_model", "run/saved_model is none: leave it out, or name the run run"),
        (
            "run/checkpoints/step-000004",
            "run/checkpoints/step-000004 is none: leave it out, or name the run run",
        ),
        ("model.ckpt", "model.ckpt is none: leave it out, or name a run's folder"),
    ],
)
def test_the_choice_is_refused_where_there_is_none(tool, model, message, capsys):
    assert tool.main(arguments(tool, model)) == 2
    error = capsys.readouterr().err
    assert error == f"error: --checkpoint last chooses a checkpoint of a run, and {message}\n"


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.__name__)
@pytest.mark.parametrize(
    ("model", "message"), [("run", "has no last checkpoint"), ("nowhere", "there is nothing at nowhere")]
)
def test_what_else_is_wrong_is_said_as_without_a_choice(tool, model, message, capsys):
    assert tool.main(arguments(tool, model)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("run")
def test_to_verify_one_of_the_two_must_be_a_run(capsys):
    assert plan.main(["--verify", "run/saved_model", "model.ckpt", "--checkpoint", "last"]) == 2
    assert "run/saved_model is none" in capsys.readouterr().err
    assert plan.main(["--verify", "run", "run/saved_model", "--checkpoint", "last"]) == 2
    assert "has no last checkpoint" in capsys.readouterr().err


def test_without_a_model_there_is_nothing_to_choose_from(capsys):
    for tool in (plan, diagnose):
        assert tool.main(["--checkpoint", "last"]) == 2
        assert "--checkpoint chooses a checkpoint of a run: name the run" in capsys.readouterr().err
