"""docs/recipes.md: every command runs, trains and freezes exactly what the page says.

The commands are the page's own, shortened by overrides; the model is the quick start's, so that the counts on
the page are those of the runs.  Steps run eagerly and the detector is built once, which makes a run take a
second instead of ten.
"""

import importlib
import itertools
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import tensorflow as tf

import data.shapes
from detector import checkpoint
from detector.freeze_schedule import FreezeSchedule

pytestmark = pytest.mark.filterwarnings("ignore:Even though the:UserWarning")

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "recipes.md"
START = "data/shapes_source"

SHORT = [
    "train.batch_size=2",
    # Without decay: what moves, moves by its gradient.
    "train.optimizer={kind: sgd}",
    "train.learning_rate={base: 0.1, warmup_steps: 0}",
    "data.evaluate=null",
    "data.augment=[]",
]
# A preset divides the run's length; other schedules get one step for each of their stages.
PRESET_STEPS = {"--gradual": 5, "--linear-probe": 3}

# {heading: what each freeze stage of its runs freezes, as a pattern over paths}; the first fifteen are those
# that every collection of such recipes has.
NOTHING = r"(?!)"
FROZEN = {
    "Freeze the whole box classifier": [r"^box_classifier/"],
    "Freeze feature-extractor blocks and train the classifier": [
        r"^feature_extractor/(Conv2d_|Mixed_3|Mixed_4[abc]/)|^rpn/"
    ],
    "Unfreeze two named layers later": [
        r"^(?!box_classifier/predictor/)",
        r"^(?!box_classifier/(predictor|tower/Mixed_5[bc])/)",
    ],
    "Freeze the first N layers": [
        r"^feature_extractor/(Conv2d_|Mixed_3|Mixed_4[abcd]/|Mixed_4e/Branch_[01]/)"
    ],
    "Freeze by a name fragment": [r"/Mixed_4"],
    "Freeze all but a list": [
        r"^(?!rpn/|box_classifier/predictor/|feature_extractor/Mixed_4e/)",
    ],
    "Restore a checkpoint and unfreeze a list": [r"^(?!rpn/|box_classifier/predictor/)"],
    "Freeze a whole backbone by a regular expression": [r"^feature_extractor/"],
    "Freeze the early blocks of a backbone by a regular expression": [
        r"^feature_extractor/(Conv2d_|Mixed_3)"
    ],
    "Unfreeze gradually in three stages": [
        r"^(?!box_classifier/predictor/)",
        r"^feature_extractor/",
        NOTHING,
    ],
    "Freeze all convolutions": [r"^rpn/|^(feature_extractor|box_classifier/tower)/.*kernel$"],
    "Freeze only early convolutions": [r"^feature_extractor/Conv2d_"],
    "Freeze nothing": [NOTHING],
    "Freeze all but the last layers": [
        r"^(?!box_classifier/predictor/|box_classifier/tower/Mixed_5c/Branch_3/)",
    ],
    "Freeze by block name": [r"^feature_extractor/(Mixed_3.|Mixed_4a)/"],
    "Freeze the RPN only": [r"^rpn/"],
    "Train the second stage only": [r"^(feature_extractor|rpn)/"],
    "Train the predictor only (linear probe)": [r"^(?!box_classifier/predictor/)"],
    "Freeze the tower, train the predictor": [r"^box_classifier/tower/"],
    "Train heads, 4+, 3+ or all": [
        r"^feature_extractor/",
        r"^feature_extractor/(Conv2d_|Mixed_3)",
        r"^feature_extractor/Conv2d_",
        NOTHING,
    ],
    "Train BatchNorm only": [r"^(?!.*/BatchNorm/)"],
    "Freeze BatchNorm, train the rest": [r"/BatchNorm/"],
    "Freeze BatchNorm's statistics only": [r"/moving_(mean|variance)$"],
    "Unfreeze from the top down": [
        r"^feature_extractor/|^box_classifier/tower/",
        r"^feature_extractor/",
        r"^feature_extractor/(Conv2d_|Mixed_3|Mixed_4[ab]/)",
        r"^feature_extractor/(Conv2d_|Mixed_3b/)",
        NOTHING,
    ],
    "Probe first, then fine-tune": [r"^(?!box_classifier/predictor/)", NOTHING],
    "Train the heads first, then everything slowly": [r"^feature_extractor/", NOTHING],
    "Take turns: RPN, then box classifier": [r"^(?!rpn/)", r"^(?!box_classifier/)"],
    "Give each component its own learning rate": [NOTHING],
    "Freeze by the freeze_variables of a pipeline.config": [r"^feature_extractor/(Conv2d_|Mixed_3)"],
    "Cross-check": [r"^box_classifier/"],
}
CLASSICS = list(FROZEN)[:15]
# What it freezes depends on the data: the page gives no count, and the run has to be as its plan says.
AUTO = "Let the data choose"


@dataclass(frozen=True)
class Recipe:
    """A section of the page: its commands, and (variables, parameters) per freeze stage, in order."""

    heading: str
    commands: tuple[tuple[str, ...], ...]
    claims: tuple[tuple[int, int], ...]


def recipes():
    sections = re.split(r"^### (.+)\n", PAGE.read_text(), flags=re.MULTILINE)[1:]
    for heading, text in zip(sections[::2], sections[1::2], strict=True):
        text = text.split("\n## ")[0]
        lines = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ").splitlines()
        numbers = re.findall(r"\*\*(nothing|([\d,]+) variables, ([\d,]+) parameters)\*\*", text)
        yield Recipe(
            heading,
            tuple(tuple(shlex.split(line)) for line in lines),
            tuple(
                (0, 0) if words == "nothing" else (int(n.replace(",", "")), int(size.replace(",", "")))
                for words, n, size in numbers
            ),
        )


RECIPES = list(recipes())


def shortened(command):
    """Return the arguments of a training command with its boundaries, in order, moved to steps 1, 2, …"""
    text, number = shlex.join(command), itertools.count(1)
    text = re.sub(r"(--unfreeze-at '?|from_step: )\d+", lambda match: f"{match[1]}{next(number)}", text)
    presets = [steps for option, steps in PRESET_STEPS.items() if option in command]
    # The first step of a warm-up does not move anything.
    steps = presets[0] if presets else next(number) + text.count("warmup_steps")
    settings = [*SHORT, f"train.steps={steps}"]
    return [*shlex.split(text), *(word for key in settings for word in ("--set", key)), "--no-progress"]


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory, built_once):
    """Draw few shapes once for all runs, build the detector once, and take steps without a trace."""
    read = data.shapes.read_shapes
    root, counts = tmp_path_factory.mktemp("shapes"), dict.fromkeys(data.shapes.IMAGE_COUNTS, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "data.shapes.read_shapes",
            lambda _, domain, split, class_names: read(root, domain, split, counts, class_names),
        )
        tf.config.run_functions_eagerly(True)
        yield
        tf.config.run_functions_eagerly(False)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder with the checkout's configurations and data in it."""
    for name in ("configs", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(run):
    """Hold a finished run to its plan; return its schedule."""
    schedule = FreezeSchedule.from_dict(json.loads((run / "plan.json").read_text()))
    start = checkpoint.read_info(START).digests
    end = checkpoint.read_info(run / "checkpoints" / "last").digests
    moved = {path for path in start if start[path] != end[path]}
    meant = {path for stage in schedule.stages for path in (*stage.plan.trained, *stage.plan.updated)}
    assert moved == meant, f"missing {sorted(meant - moved)}, extra {sorted(moved - meant)}"
    proof = json.loads((run / "freeze_proof.json").read_text())
    assert proof["holds"]
    assert [set(stage["variables"]) for stage in proof["stages"]] == [
        set(stage.plan.frozen) for stage in schedule.stages
    ]
    return schedule


@pytest.mark.parametrize(
    "recipe",
    [
        # As many runs as stages, or nearly: three show what four and five do.
        pytest.param(
            recipe,
            id=recipe.heading,
            marks=[pytest.mark.slow] if len(FROZEN.get(recipe.heading, ())) > 3 else [],
        )
        for recipe in RECIPES
    ],
)
def test_a_recipe_freezes_what_it_says(recipe, workplace, monkeypatch, capsys):
    if recipe.heading == AUTO:
        sample = importlib.import_module("diagnose").training_sample
        monkeypatch.setattr("diagnose.training_sample", lambda config, dataset: sample(config, dataset, 1))
    plans = []
    for python, tool, *options in recipe.commands:
        assert python == "python"
        main = importlib.import_module(Path(tool).stem).main
        before = set(workplace.glob("runs/*"))
        assert main(shortened(options) if tool == "tools/train.py" else options) == 0, options
        if tool == "tools/train.py":
            (run,) = set(workplace.glob("runs/*")) - before
            plans += [stage.plan for stage in check(run).stages]
            assert "are bit-identical" in (printed := capsys.readouterr().out) or "nothing was" in printed
    if recipe.heading == AUTO:
        return
    size = {row.path: row.size for row in plans[0].rows}
    patterns = FROZEN[recipe.heading]
    assert [set(plan.frozen) for plan in plans] == [
        {path for path in size if re.search(pattern, path)} for pattern in patterns
    ]
    assert [(len(plan.frozen), sum(size[path] for path in plan.frozen)) for plan in plans] == list(
        recipe.claims
    )


def test_the_page_has_what_people_ask_for():
    headings = [recipe.heading for recipe in RECIPES]
    assert set(CLASSICS) <= set(headings)
    assert set(headings) == {*FROZEN, AUTO}
    assert all(recipe.commands for recipe in RECIPES)


def test_the_table_of_contents_leads_to_every_recipe():
    rows = re.findall(r"^\| \[(.+?)\]\(#(.+?)\) \| `(.+?)` \|$", PAGE.read_text(), re.MULTILINE)
    assert [title for title, _, _ in rows] == [recipe.heading for recipe in RECIPES]
    for (title, anchor, options), recipe in zip(rows, RECIPES, strict=True):
        # As GitHub makes anchors of headings.
        assert anchor == re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        words = shlex.split(options.replace(r"\|", "|"))  # a table's cells escape it
        assert any(set(words) <= set(command) for command in recipe.commands), title
