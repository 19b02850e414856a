"""Drawing detections: boxes in the colour of their class, with labels that can be read.

Not `official.vision`'s drawing: its labels are ten pixels high whatever the picture's size, and may hide one
another or stand outside the picture.
"""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]  # left, top, right, bottom

_SMALLEST_LONGER_SIDE = 480  # pixels: smaller pictures are enlarged, or their labels would cover them
_SMALLEST_TEXT, _TEXT_PART = 13, 0.02  # height of the letters: pixels, and part of the longer side
_GOLDEN_RATIO = 0.618034


def class_color(index: int) -> Color:
    """Return the colour of the `index`-th class, RGB 0 … 255; the first dozen are easy to tell apart.

    Steps of the golden ratio around the circle of hues never come back to a hue, and a class keeps its colour
    when others join.  Every eight classes, where hues draw close, the colours become paler or darker.
    """
    saturation, value = [(0.9, 0.95), (0.45, 1.0), (0.9, 0.6)][index // 8 % 3]
    red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN_RATIO % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_detections(
    image: np.ndarray, boxes_yxyx: np.ndarray, labels: Sequence[str], colors: Sequence[Color]
) -> Image.Image:
    """Return a picture of `image` with the D boxes and their labels.

    Images whose longer side is under 480 pixels are enlarged by a whole factor.

    Args:
        image: uint8 [h, w, 3], RGB.
        boxes_yxyx: float [D, 4], pixels of `image`, best first: it is drawn on top, and chooses first where
            its label stands.
        labels: D texts.
        colors: D colours.
    """
    height, width = image.shape[:2]
    factor = -(-_SMALLEST_LONGER_SIDE // max(height, width))
    picture = Image.fromarray(image)
    if factor > 1:
        picture = picture.resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    letters = max(_SMALLEST_TEXT, round(max(picture.size) * _TEXT_PART))
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", letters)
    line = max(2, letters // 6)
    rectangles = [_rectangle(box * factor, picture.size) for box in np.asarray(boxes_yxyx, np.float64)]

    for rectangle, color in reversed(list(zip(rectangles, colors, strict=True))):
        draw.rectangle(rectangle, outline=color, width=line)
    places: list[Rectangle] = []
    for rectangle, label in zip(rectangles, labels, strict=True):
        size = draw.textlength(label, font) + letters * 0.5, letters * 1.35
        places.append(_place(rectangle, size, picture.size, places))
    for place, label, color in reversed(list(zip(places, labels, colors, strict=True))):
        draw.rectangle(place, fill=color)
        middle = place[0] + letters * 0.25, (place[1] + place[3]) / 2
        draw.text(middle, label, fill=_readable_on(color), font=font, anchor="lm")
    return picture


def _rectangle(box_yxyx: np.ndarray, size: tuple[int, int]) -> Rectangle:
    """Return the outline of a box, inside the picture and never turned inside out."""
    ymin, xmin, ymax, xmax = box_yxyx
    left, top = min(max(xmin, 0.0), size[0] - 1.0), min(max(ymin, 0.0), size[1] - 1.0)
    return left, top, max(left, min(xmax, size[0]) - 1.0), max(top, min(ymax, size[1]) - 1.0)


def _place(
    box: Rectangle, label_size: tuple[float, float], size: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle:
    """Return where a label stands: above its box, inside at the top, below, inside at the bottom.

    The first of these that is inside the picture and free, else the first that is inside, covering others.
    """
    width, height = label_size
    left = max(0.0, min(box[0], size[0] - width))
    tops = (box[1] - height, box[1], box[3], box[3] - height)
    inside = [
        (left, top, left + width, top + height) for top in tops if top >= 0 and top + height <= size[1]
    ] or [(left, 0.0, left + width, height)]
    return next((place for place in inside if not any(_overlap(place, other) for other in taken)), inside[0])


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _readable_on(color: Color) -> Color:
    """Return black or white, by the brightness of `color` (the weights of ITU-R BT.601)."""
    brightness = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    return (0, 0, 0) if brightness > 128 else (255, 255, 255)
