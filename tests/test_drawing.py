import numpy as np
import pytest

from detector.drawing import class_color, draw_detections

RED, BLUE = (255, 0, 0), (0, 0, 255)
GREY = np.full([600, 800, 3], 120, np.uint8)


def pixels(picture, color):
    """Return the (y, x) of every pixel of `color`."""
    return np.argwhere((np.asarray(picture) == color).all(axis=2))


def test_a_box_is_drawn_in_its_color_on_its_edges_and_nowhere_else():
    picture = np.asarray(draw_detections(GREY, np.array([[200, 300, 400, 500]]), ["cat 90%"], [RED]))
    for y, x in [(200, 400), (399, 400), (300, 300), (300, 499)]:
        assert tuple(picture[y, x]) == RED
    assert (picture[210:390, 310:490] == 120).all()  # the label stands above
    assert (picture[402:] == 120).all()
    assert (picture[:, 502:] == 120).all()


def test_large_images_keep_their_size_and_small_ones_are_enlarged_by_a_whole_factor():
    assert draw_detections(GREY, np.zeros([0, 4]), [], []).size == (800, 600)
    small = draw_detections(GREY[:48, :100], np.array([[10, 20, 30, 60]]), ["cat"], [RED])
    assert small.size == (500, 240)
    found = pixels(small, RED)
    assert found[:, 1].min() == 100  # 20 * 5
    assert found[:, 0].max() == 149  # 30 * 5, the edge not included


def test_labels_grow_with_the_picture():
    def label_height(side):
        image = np.full([side, side, 3], 120, np.uint8)
        box = np.array([[side / 2, side / 2, side * 0.9, side * 0.9]])
        picture = draw_detections(image, box, ["cat"], [RED])
        return side / 2 - pixels(picture, RED)[:, 0].min()

    assert 13 <= label_height(600) < 25
    assert label_height(3000) > 60


@pytest.mark.parametrize(
    "box", [[0, 0, 100, 100], [0, 760, 50, 800], [560, 790, 600, 800], [0, 0, 600, 800], [590, 0, 600, 30]]
)
def test_labels_stay_inside_the_picture(box):
    with_label = draw_detections(GREY, np.array([box], float), ["a long class name 100%"], [RED])
    without = draw_detections(GREY, np.array([box], float), [""], [RED])
    # Inside, the whole label changes pixels: as many as on a picture with room on every side.
    changed = (np.asarray(with_label) != np.asarray(without)).any(axis=2)
    assert changed.sum() > 1500
    white = pixels(with_label, (255, 255, 255))
    assert white[:, 0].min() > 1 and white[:, 0].max() < 598
    assert white[:, 1].min() > 1 and white[:, 1].max() < 798


def test_labels_of_boxes_at_one_place_do_not_hide_one_another():
    box = [200, 300, 400, 500]
    first = draw_detections(GREY, np.array([box]), ["circle 90%"], [RED])
    both = draw_detections(GREY, np.array([box, box]), ["circle 90%", "square 80%"], [RED, BLUE])
    # All that can be read of the better one's label can still be read; the other's has its ground elsewhere.
    white = (255, 255, 255)
    assert set(map(tuple, pixels(first, white))) < set(map(tuple, pixels(both, white)))
    assert len(pixels(both, BLUE)) > 1000


def test_the_best_detection_is_on_top():
    picture = np.asarray(draw_detections(GREY, np.array([[200, 300, 400, 500]] * 2), ["", ""], [RED, BLUE]))
    assert tuple(picture[399, 400]) == RED


def test_text_is_black_on_bright_colors_and_white_on_dark_ones():
    box = np.array([[200, 300, 400, 500]])
    bright = draw_detections(GREY, box, ["cat 90%"], [(255, 255, 0)])
    dark = draw_detections(GREY, box, ["cat 90%"], [(0, 0, 120)])
    assert len(pixels(bright, (0, 0, 0))) > 10
    assert len(pixels(bright, (255, 255, 255))) == 0
    assert len(pixels(dark, (255, 255, 255))) > 10


def test_boxes_without_extent_or_beyond_the_edge_are_drawn_too():
    boxes = np.array([[300, 400, 300, 400], [-20, -20, 700, 900]], float)
    picture = draw_detections(GREY, boxes, ["dot", "all"], [RED, BLUE])
    assert tuple(np.asarray(picture)[300, 400]) == RED
    assert tuple(np.asarray(picture)[599, 400]) == BLUE


def test_the_first_classes_have_colors_far_apart():
    colors = np.array([class_color(index) for index in range(12)], float)
    distances = np.linalg.norm(colors[:, None] - colors[None], axis=2)
    assert distances[~np.eye(12, dtype=bool)].min() > 60
    assert class_color(3) == class_color(3)
