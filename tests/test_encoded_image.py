import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from data.label_checks import image_size
from detector.encoded_image import decode, has_palette

COLOURS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8))


def encoded(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def few_grays():
    """A gray BMP whose palette has 16 colours instead of 256, the first 16 grays."""
    whole = encoded(COLOURS.convert("L").point(lambda value: value // 16), "BMP")
    head, palette, pixels = whole[:54], whole[54 : 54 + 4 * 256], whole[54 + 4 * 256 :]
    start = (54 + 4 * 16).to_bytes(4, "little")
    return head[:10] + start + head[14:46] + (16).to_bytes(4, "little") + head[50:] + palette[:64] + pixels


READABLE = [encoded(COLOURS.convert(mode), "BMP") for mode in ("RGB", "RGBA", "L")] + [few_grays()]
READABLE += [encoded(COLOURS.quantize(16), "GIF"), encoded(COLOURS.quantize(16), "PNG")]
READABLE += [encoded(COLOURS, "PNG"), encoded(COLOURS, "JPEG")]


@pytest.mark.parametrize("image", READABLE, ids=range(len(READABLE)))
def test_what_tensorflow_reads_is_decoded_as_training_does(image):
    assert not has_palette(tf.constant(image))
    assert image_size(io.BytesIO(image)) == (5, 7)
    found = tf.function(decode, autograph=False)(tf.constant(image))
    np.testing.assert_array_equal(found, tf.io.decode_image(image, channels=3, expand_animations=False))


@pytest.mark.parametrize("colours", [16, 256])
def test_a_bmp_with_a_palette_is_refused_where_training_refuses_it(colours):
    image = encoded(COLOURS.quantize(colours), "BMP")
    assert has_palette(tf.constant(image))
    with pytest.raises(ValueError) as of_training:
        image_size(io.BytesIO(image))
    with pytest.raises(tf.errors.InvalidArgumentError) as of_graph:
        tf.function(decode, autograph=False)(tf.constant(image))
    assert str(of_training.value) in of_graph.value.message


@pytest.mark.parametrize("image", [b"", b"B", b"BM", READABLE[0][:20], b"BM" + b"\xff" * 60], ids=range(5))
def test_what_is_no_image_is_said_to_be_none(image):
    assert not has_palette(tf.constant(image))
    with pytest.raises(tf.errors.InvalidArgumentError):
        tf.function(decode, autograph=False)(tf.constant(image))
