import pytest

from detector.benchmark.result import Spread, WorkloadResult
from detector.benchmark.scaling import scaling_of


def workload(seconds, batch_size=1, side=100, kind="train", images=None, settings=()):
    return WorkloadResult(
        **{"name": "any", "kind": kind, "peer": None, "settings": settings, "batch_size": batch_size},
        **{"height": side, "width": side, "images": images or batch_size},
        **{"seconds": Spread.of([seconds]), "gflop": None, "gflops": None, "peak_part": None},
        **{"peak_memory_bytes": 1, "import_seconds": None, "start_seconds": None, "first_step_seconds": 1.0},
    )


def test_the_price_of_one_more_image_and_where_it_bends():
    # 0.5 s, and 1 s an image up to 4; the 4 images after these cost 1.5 s each.
    (curve,) = scaling_of([workload(8 + 2.5, 8), workload(1.5, 1), workload(2.5, 2), workload(4.5, 4)])
    assert (curve.axis, curve.unit) == ("batch size", "image")
    assert [point.at for point in curve.points] == [1, 2, 4, 8]
    assert [point.average for point in curve.points] == [1.5, 1.25, 1.125, 10.5 / 8]
    assert [point.marginal for point in curve.points] == [None, 1.0, 1.0, 1.5]
    assert [point.is_bend for point in curve.points] == [False, False, False, True]


def test_the_price_of_one_more_megapixel():
    (curve,) = scaling_of([workload(1, side=1000), workload(4, side=2000), workload(11, side=3000)])
    assert curve.axis == "megapixels"
    assert [point.marginal for point in curve.points] == [None, 1.0, pytest.approx(1.4)]
    assert [point.is_bend for point in curve.points] == [False, False, True]


def test_evaluation_by_images():
    (curve,) = scaling_of([workload(n / 10, kind="evaluate", images=n) for n in (100, 1000, 5000)])
    assert curve.axis == "images" and not any(point.is_bend for point in curve.points)


def test_what_differs_in_more_than_one_way_is_no_curve():
    assert scaling_of([workload(1), workload(2, 2), workload(3, 4, settings=("freeze.freeze=[rpn]",))]) == []
    assert scaling_of([workload(1), workload(2, 2), workload(3, 2), workload(4, 4)]) == []
