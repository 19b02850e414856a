"""COCO scores for people to read."""

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from detector.coco_metrics import CocoScores

# One row of the table: a precision and its label, a recall and its label.
_ROWS = (
    ("AP", "AP     IoU 0.50:0.95", "AR_1", "AR     1 detection per image"),
    ("AP50", "AP50   IoU 0.50", "AR_10", "AR    10 detections"),
    ("AP75", "AP75   IoU 0.75", "AR_100", "AR   100 detections"),
    ("AP_small", "AP     small objects", "AR_small", "AR     small objects"),
    ("AP_medium", "AP     medium", "AR_medium", "AR     medium"),
    ("AP_large", "AP     large", "AR_large", "AR     large"),
)


def score_table(scores: CocoScores, title: str) -> Group:
    """Return the 12 COCO numbers and the AP of every class for `rich.print`, at most 80 columns wide.

    A dash marks a number that the ground truth leaves undefined.
    """
    overall = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
    for _ in range(2):
        overall.add_column(no_wrap=True)
        overall.add_column(justify="right", no_wrap=True)
    for precision, precision_label, recall, recall_label in _ROWS:
        style = "bold" if precision == "AP" else ""
        overall.add_row(
            Text(precision_label, style=style),
            Text(_number(getattr(scores, precision)), style=style),
            Text(recall_label),
            Text(_number(getattr(scores, recall))),
        )
    classes = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    classes.add_column("class", overflow="fold", max_width=56)
    classes.add_column("AP", justify="right", no_wrap=True)
    classes.add_column("AP50", justify="right", no_wrap=True)
    for name, value in scores.AP_per_class.items():
        classes.add_row(Text(name), _number(value), _number(scores.AP50_per_class[name]))
    # Text, not str: rich would read brackets in a title or a class name as markup.
    counts = f"{scores.num_images:,} images, {scores.num_detections:,} detections"
    return Group(Text(title, style="bold"), Text(counts), overall, classes)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
