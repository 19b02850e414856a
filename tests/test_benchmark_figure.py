import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from detector.benchmark.figure import _curves
from detector.benchmark.scaling import Scaling, ScalingPoint


@pytest.mark.parametrize("average", [0.5, 1.24, 40.0])
def test_the_circle_about_the_highest_point_is_whole(average):
    points = [
        ScalingPoint(at, at * a, a, None, None, at == 2) for at, a in ((1, 1.0), (2, average), (4, 0.9))
    ]
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    _curves(axes, [Scaling("evaluate", "images", tuple(points))])
    canvas.draw()
    (circles,) = axes.collections
    radius = (circles.get_sizes()[0] ** 0.5 + circles.get_linewidths()[0]) / 2 * figure.dpi / 72
    _, top = axes.transData.transform((2, max(average, 1.0)))
    assert top + radius < axes.bbox.y1 and axes.get_ylim()[0] == 0
