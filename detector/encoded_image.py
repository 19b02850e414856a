"""Decoding the bytes of an image file in the graph, without what TensorFlow would misread.

`tf.io.decode_image` takes the indices of a BMP's palette for gray.  Training refuses such files by their
header (`data/label_checks.py`); a SavedModel has nothing but its graph to tell them by.
"""

import tensorflow as tf

PALETTE = "it is a BMP with a palette, which TensorFlow cannot read; convert it to PNG or JPEG"

# Where a BMP's header says what; whole numbers, their lowest byte first.
_HEADER_SIZE = slice(14, 18)
_BITS_PER_PIXEL = slice(28, 30)
_COLOURS = slice(46, 50)
_LENGTH = 54
_FILE_HEADER = 14  # bytes before the header whose size is in it, behind which the palette begins


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """Return an image uint8 [h, w, 3] of JPEG, PNG, BMP or GIF bytes, string []; to be called in a graph.

    The graph raises `InvalidArgumentError` for what cannot be decoded, and for a BMP with a palette.
    """
    with tf.control_dependencies([tf.debugging.Assert(~has_palette(encoded), [PALETTE])]):
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


def has_palette(encoded: tf.Tensor) -> tf.Tensor:
    """Return whether these bytes, string [], are a BMP whose pixels stand for other colours, bool [].

    A palette whose entries are the grays of their own numbers is none: its indices are the pixels.  Those of
    less than 8 bits a pixel need no telling, as TensorFlow refuses them itself.
    """
    header = _bytes(encoded, 0, _LENGTH)
    header = tf.pad(header, [[0, _LENGTH - tf.shape(header)[0]]])
    named = _number(header[_COLOURS])
    colours = tf.where((named == 0) | (named > 256), tf.constant(256, tf.int64), named)
    palette = _bytes(encoded, _FILE_HEADER + _number(header[_HEADER_SIZE]), 4 * colours)
    entries = tf.reshape(palette[: tf.size(palette) // 4 * 4], [-1, 4])
    is_gray = tf.reduce_all(entries[:, :3] == tf.range(tf.shape(entries)[0], dtype=tf.int64)[:, tf.newaxis])
    is_bmp = tf.strings.substr(encoded, 0, 2) == b"BM"
    return is_bmp & (_number(header[_BITS_PER_PIXEL]) == 8) & ~is_gray


def _bytes(encoded: tf.Tensor, start: int | tf.Tensor, count: int | tf.Tensor) -> tf.Tensor:
    """Return up to `count` bytes from `start` on, int64 [n]: fewer where the file ends before."""
    start = tf.minimum(tf.cast(start, tf.int64), tf.cast(tf.strings.length(encoded), tf.int64))
    part = tf.strings.substr(encoded, start, tf.cast(count, tf.int64))
    return tf.cast(tf.io.decode_raw(part, tf.uint8), tf.int64)


def _number(part: tf.Tensor) -> tf.Tensor:
    """Return the whole number, int64 [], of bytes int64 [n], the lowest first."""
    return tf.reduce_sum(part * 256 ** tf.range(tf.shape(part)[0], dtype=tf.int64))
