import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from data.dataset import LabelError
from data.label_checks import encoded_size, image_size, image_sizes, select_categories

COLOURS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8))


def encoded(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("BMP", "RGB"), ("BMP", "RGBA"), ("BMP", "L"), ("GIF", "P"), ("GIF", "L")]
    + [("PNG", mode) for mode in ("RGB", "RGBA", "L", "LA", "P", "1")],
)
def test_what_is_let_through_is_decoded_to_its_colours(kind, mode):
    image = encoded(COLOURS.quantize(16) if mode == "P" else COLOURS.convert(mode), kind)
    assert image_size(io.BytesIO(image)) == (5, 7)
    found = tf.io.decode_image(image, channels=3, expand_animations=False).numpy()
    np.testing.assert_array_equal(found, Image.open(io.BytesIO(image)).convert("RGB"))


@pytest.mark.parametrize("image", [COLOURS.quantize(16), COLOURS.convert("1")], ids=["colours", "two"])
def test_a_bmp_with_a_palette_is_refused(image, tmp_path):
    path, message = tmp_path / "map.bmp", "a BMP with a palette, .* convert it to PNG or JPEG"
    path.write_bytes(encoded(image, "BMP"))
    with pytest.raises(ValueError, match=message):
        image_size(io.BytesIO(path.read_bytes()))
    with pytest.raises(LabelError, match=rf"entry 3: the image is unreadable: it is {message}$"):
        encoded_size(path.read_bytes(), "entry 3")
    with pytest.raises(
        LabelError, match=rf"labels.json: 1 of 1 images are unreadable \(.*map.bmp: it is {message}"
    ):
        image_sizes([path], tmp_path / "labels.json")
    if image.mode == "P":  # why: TensorFlow takes the palette's indices for gray
        found = tf.io.decode_image(path.read_bytes(), channels=3).numpy()
        np.testing.assert_array_equal(found[..., 0], np.asarray(Image.open(path)))
        assert np.ptp(found, axis=-1).max() == 0


def resized(image, height, width):
    """The bytes of an image whose header says another size."""
    if image.startswith(b"\x89PNG"):
        header = b"IHDR" + struct.pack(">II", width, height) + image[24:29]
        return image[:12] + header + struct.pack(">I", zlib.crc32(header)) + image[33:]
    if image.startswith(b"BM"):
        return image[:18] + struct.pack("<ii", width, height) + image[26:]
    if image.startswith(b"GIF"):
        return image[:6] + struct.pack("<HH", width, height) + image[10:]
    size = image.index(b"\xff\xc0") + 5
    return image[:size] + struct.pack(">HH", height, width) + image[size + 4 :]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("kind", "mode", "height"),
    [("JPEG", "RGB", 12_000), ("JPEG", "L", 15_000)]
    + [(kind, "L", 15_000) for kind in ("PNG", "BMP", "GIF")],
)
def test_a_large_image_is_one_like_any_other(kind, mode, height):
    image = resized(encoded(COLOURS.convert(mode), kind), height, 14_000)
    assert image_size(io.BytesIO(image)) == (height, 14_000)


@pytest.mark.parametrize(
    ("kind", "height", "message", "of_tensorflow"),
    [
        ("JPEG", 15_000, "a JPEG of 210 million pixels, and TensorFlow reads less than 179 million", "JPEG"),
        ("PNG", 40_000, "a PNG of 560 million pixels, .* less than 537 million; scale it down", "too large"),
        ("BMP", 20_000, "a BMP of 280 million pixels, .* less than 268 million; scale it down", r"2\^30"),
    ],
)
def test_what_is_too_large_for_tensorflow_is_refused(kind, height, message, of_tensorflow):
    image = resized(encoded(COLOURS, kind), height, 14_000)
    with pytest.raises(ValueError, match=message):
        image_size(io.BytesIO(image))
    with pytest.raises(tf.errors.InvalidArgumentError, match=of_tensorflow):
        tf.io.decode_image(image, channels=3)


def test_a_class_without_name_cannot_be_asked_for():
    # Of VOC's labels the names that are asked for are all that is known.
    with pytest.raises(LabelError, match="class_names: name 2 is empty; leave it out"):
        select_categories({1: "cat", 2: ""}, ("cat", ""), "Annotations")
