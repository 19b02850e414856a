"""SHA-256 digests of variables: what a freeze is proved with and a checkpoint verified by."""

import hashlib
from collections.abc import Mapping

import numpy as np
import tensorflow as tf


def digest(value: np.ndarray) -> str:
    """Return the SHA-256, in hex, of an array's dtype, shape and bytes: equal exactly if the bits are."""
    sha = hashlib.sha256(f"{value.dtype.name} {list(value.shape)} ".encode())
    sha.update(np.ascontiguousarray(value).tobytes())
    return sha.hexdigest()


def digests(variables: Mapping[str, tf.Variable]) -> dict[str, str]:
    """Return {path: digest} of the variables' present values."""
    return {path: digest(variable.numpy()) for path, variable in variables.items()}
