"""Box arithmetic: areas, overlaps, clipping, and the Faster R-CNN box coder.

Boxes are float32 [..., 4] as ymin, xmin, ymax, xmax in pixels, unless a name says otherwise.
"""

import tensorflow as tf

# Of the published configurations: the coder's targets are centre offsets times 10 and log sizes times 5.
BOX_CODER_SCALES = (10.0, 10.0, 5.0, 5.0)
_EPSILON = 1e-8  # the original coder's guard against boxes without extent


def area(boxes_yxyx: tf.Tensor) -> tf.Tensor:
    """Return the area [...] of boxes [..., 4], in square pixels; 0 for boxes turned inside out."""
    ymin, xmin, ymax, xmax = tf.unstack(boxes_yxyx, axis=-1)
    return tf.maximum(ymax - ymin, 0.0) * tf.maximum(xmax - xmin, 0.0)


def intersection(first_yxyx: tf.Tensor, second_yxyx: tf.Tensor) -> tf.Tensor:
    """Return the pairwise intersection area [..., N, M] of boxes [..., N, 4] and [..., M, 4]."""
    # Coordinate by coordinate: TensorFlow broadcasts along M several times as fast as along a last axis of 2.
    ymin, xmin, ymax, xmax = tf.unstack(tf.expand_dims(first_yxyx, -2), axis=-1)
    other_ymin, other_xmin, other_ymax, other_xmax = tf.unstack(tf.expand_dims(second_yxyx, -3), axis=-1)
    height = tf.minimum(ymax, other_ymax) - tf.maximum(ymin, other_ymin)
    width = tf.minimum(xmax, other_xmax) - tf.maximum(xmin, other_xmin)
    return tf.maximum(height, 0.0) * tf.maximum(width, 0.0)


def iou(first_yxyx: tf.Tensor, second_yxyx: tf.Tensor, shared: tf.Tensor | None = None) -> tf.Tensor:
    """Return the pairwise intersection over union [..., N, M] of boxes [..., N, 4] and [..., M, 4].

    A pair whose intersection is empty has 0, even where both boxes have no area.  `shared` is the boxes'
    `intersection`, for whom it is at hand.
    """
    if shared is None:
        shared = intersection(first_yxyx, second_yxyx)
    union = tf.expand_dims(area(first_yxyx), -1) + tf.expand_dims(area(second_yxyx), -2) - shared
    return tf.math.divide_no_nan(shared, union)


def clip_to_window(boxes_yxyx: tf.Tensor, window_hw: tf.Tensor) -> tf.Tensor:
    """Clip boxes [..., 4] to (0, 0, height, width); `window_hw` [..., 2] broadcasts against the boxes."""
    window = tf.cast(tf.concat([window_hw, window_hw], axis=-1), boxes_yxyx.dtype)
    return tf.clip_by_value(boxes_yxyx, 0.0, window)


def encode(boxes_yxyx: tf.Tensor, anchors_yxyx: tf.Tensor) -> tf.Tensor:
    """Return the encodings [..., 4] (ty, tx, th, tw) of boxes [..., 4] with respect to anchors [..., 4].

    Ren et al., "Faster R-CNN", section 3.1.2, eq. 2, times `BOX_CODER_SCALES`.
    """
    y, x, h, w = _centre_and_size(boxes_yxyx)
    anchor_y, anchor_x, anchor_h, anchor_w = _centre_and_size(anchors_yxyx)
    h, w, anchor_h, anchor_w = h + _EPSILON, w + _EPSILON, anchor_h + _EPSILON, anchor_w + _EPSILON
    encodings = tf.stack(
        [
            (y - anchor_y) / anchor_h,
            (x - anchor_x) / anchor_w,
            tf.math.log(h / anchor_h),
            tf.math.log(w / anchor_w),
        ],
        axis=-1,
    )
    return encodings * BOX_CODER_SCALES


def decode(encodings: tf.Tensor, anchors_yxyx: tf.Tensor) -> tf.Tensor:
    """Return the boxes [..., 4] of encodings [..., 4] with respect to anchors [..., 4]; undoes `encode`."""
    ty, tx, th, tw = tf.unstack(encodings / BOX_CODER_SCALES, axis=-1)
    anchor_y, anchor_x, anchor_h, anchor_w = _centre_and_size(anchors_yxyx)
    half_h, half_w = tf.exp(th) * anchor_h / 2.0, tf.exp(tw) * anchor_w / 2.0
    y, x = ty * anchor_h + anchor_y, tx * anchor_w + anchor_x
    return tf.stack([y - half_h, x - half_w, y + half_h, x + half_w], axis=-1)


def _centre_and_size(boxes_yxyx: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    ymin, xmin, ymax, xmax = tf.unstack(boxes_yxyx, axis=-1)
    h, w = ymax - ymin, xmax - xmin
    return ymin + h / 2.0, xmin + w / 2.0, h, w
