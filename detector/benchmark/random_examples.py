"""The images and boxes that every worker draws, a peer's own framework or none: NumPy alone."""

import numpy as np

# Batches that a worker goes through: no step sees the one before's in its caches.
_BATCHES = 4

LEARNING_RATE = 1e-6  # far below what moves a weight: the last step computes what the first one did


def random_examples(
    batch_size: int, height: int, width: int, classes: int, boxes: int, seed: int = 0
) -> list[dict[str, np.ndarray]]:
    """Return batches of random pixels and boxes, the same ones each time.

    Boxes are an eighth to a half of the canvas a side.

    Returns:
        Per batch `image` uint8 [B, H, W, 3], `boxes_yxyx` float32 [B, N, 4] in pixels, and `classes`
        int32 [B, N], 0 … `classes` - 1.
    """
    rng = np.random.default_rng(seed)
    canvas_hw = np.array([height, width])
    batches = []
    for _ in range(_BATCHES):
        size = rng.uniform(1 / 8, 1 / 2, [batch_size, boxes, 2]) * canvas_hw
        corner = rng.uniform(0, 1, size.shape) * (canvas_hw - size)
        batches.append(
            {
                "image": rng.integers(0, 256, [batch_size, height, width, 3], np.uint8),
                "boxes_yxyx": np.concatenate([corner, corner + size], axis=-1).astype(np.float32),
                "classes": rng.integers(0, classes, [batch_size, boxes]).astype(np.int32),
            }
        )
    return batches
