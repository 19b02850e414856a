"""Arrays of one dtype and any shapes in one file, one after the other, to be read by number.

NAME.bin   the arrays
NAME.npy   int64 [arrays, 1 + rank]: where each begins, and its shape
"""

import io
from pathlib import Path

import numpy as np
import tensorflow as tf


class ArrayWriter:
    """Writes one array after the other, all of one dtype, into `folder`/`name`."""

    def __init__(self, folder: Path, name: str, dtype: str):
        """Start the files; `dtype` is the name of the arrays'."""
        self.dtype = dtype
        self.bytes = 0
        self._index: list[list[int]] = []
        self._index_path = folder / f"{name}.npy"
        self._file = open(folder / f"{name}.bin", "wb")  # noqa: SIM115 - closed by `__exit__`

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._file.close()
        if kind is not None:
            return
        index = io.BytesIO()
        np.save(index, np.array(self._index, np.int64))
        # Not by NumPy, whose error does not say that the disk is full.
        self._index_path.write_bytes(index.getvalue())

    def append(self, value: np.ndarray) -> None:
        """Write an array, of the same rank as those before."""
        self._index.append([self.bytes, *value.shape])
        self.bytes += self._file.write(np.ascontiguousarray(value).tobytes())


class ArrayFile:
    """The arrays that an `ArrayWriter` wrote, by their number, memory-mapped."""

    def __init__(self, folder: Path, name: str, dtype: tf.DType):
        """Open the files; `dtype` is what they were written with."""
        self.dtype = dtype
        self._numpy_dtype = np.dtype(dtype.as_numpy_dtype)
        index = np.load(folder / f"{name}.npy")
        self._starts, self._shapes = index[:, 0], index[:, 1:]
        path = folder / f"{name}.bin"
        self._bytes = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, entry: int) -> np.ndarray:
        shape = self._shapes[entry]
        start = self._starts[entry]
        size = int(np.prod(shape)) * self._numpy_dtype.itemsize
        return self._bytes[start : start + size].view(self._numpy_dtype).reshape(shape)

    @property
    def static_shape(self) -> list[int | None]:
        """The shape of every array, None where they differ."""
        same = (self._shapes == self._shapes[:1]).all(axis=0)
        return [int(size) if is_same else None for size, is_same in zip(self._shapes[0], same, strict=True)]

    def constant(self) -> np.ndarray | None:
        """What every array is, where they are all the same."""
        first = self[0]
        return first if all(np.array_equal(first, self[i]) for i in range(len(self))) else None
