"""Files with weights: which there are, their entries and shapes, and reading one entry.

Reading knows nothing of models.  A file that is missing, cut short or none at all is one `WeightsError`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tensorflow as tf

from detector import checkpoint
from detector.plain_path import require_plain
from detector.run_log import find_checkpoint, is_run

# What TensorFlow's checkpoint reader raises for damaged files; IndexError for those that are too short.
_UNREADABLE = (tf.errors.OpError, ValueError, RuntimeError, IndexError)


class WeightsError(ValueError):
    """Weights that cannot be read or do not fit; the message says what was expected and what came."""


@dataclass(frozen=True)
class Source:
    """A file with weights.

    `kind` is "native" (a checkpoint of this package), "tensorflow" or "h5"; `shapes` the shape of every
    entry by name, in "h5" in the order of Keras's layers; `read` returns one entry; `info` is the page of a
    native checkpoint.
    """

    path: str
    kind: str
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    info: checkpoint.CheckpointInfo | None = None


def exists(path: Path) -> bool:
    """Whether there is something at `path`, which may be a TensorFlow checkpoint's prefix."""
    return path.exists() or path.with_name(f"{path.name}.index").is_file()


def open_source(path: str | Path) -> Source:
    """Open a checkpoint of this package, a TensorFlow checkpoint or a Keras `.h5` file.

    A run's folder stands for its best checkpoint, or its last where none was scored.
    A TensorFlow checkpoint is given as its prefix (`model.ckpt`), as one of its files (`model.ckpt.index`),
    or as the folder that holds it.

    Raises FileNotFoundError if nothing is there, WeightsError if it cannot be read, ValueError if TensorFlow
    cannot read from there (see `detector.plain_path`).
    """
    path = Path(path)
    if checkpoint.is_checkpoint(path) or is_run(path):
        return _open_native(path)
    if path.suffix in (".h5", ".hdf5"):
        return _open_h5(path)
    return _open_tensorflow(path)


def _open_native(path: Path) -> Source:
    try:
        path = find_checkpoint(path)
        info = checkpoint.read_info(path)
        values = checkpoint.read_values(path, info)
    except checkpoint.CheckpointError as error:
        raise WeightsError(str(error)) from None
    shapes = {name: value.shape for name, value in values.items()}
    return Source(str(path), "native", shapes, values.__getitem__, info)


def _open_tensorflow(path: Path) -> Source:
    prefix = _prefix(require_plain(path))
    damaged = f"{prefix} is damaged or incomplete; get it again, with all its files"
    try:
        reader = tf.train.load_checkpoint(prefix)
        shapes = {name: tuple(shape) for name, shape in reader.get_variable_to_shape_map().items()}
    except _UNREADABLE as error:
        raise WeightsError(f"{damaged} ({_first_line(error)})") from None

    def read(name: str) -> np.ndarray:
        try:
            return reader.get_tensor(name)
        except _UNREADABLE as error:
            raise WeightsError(f"{damaged} (at {name}: {_first_line(error)})") from None

    return Source(prefix, "tensorflow", shapes, read)


def _prefix(path: Path) -> str:
    """Return the prefix of the TensorFlow checkpoint that `path` names."""
    if path.is_dir():
        latest = tf.train.latest_checkpoint(str(path))
        indices = sorted(path.glob("*.index"))
        if latest and Path(latest + ".index").is_file():
            return latest
        if len(indices) == 1:
            return str(indices[0].with_suffix(""))
        found = f"{len(indices)}: {', '.join(file.name for file in indices[:5])}" if indices else "none"
        raise FileNotFoundError(
            f"expected one checkpoint in the folder {path}, found {found}; name it: {path}/PREFIX"
        )
    if path.suffix == ".index" or ".data-" in path.name:
        path = path.with_name(path.name.rpartition(".")[0])
    if path.with_name(path.name + ".index").is_file():
        return str(path)
    if path.is_file():
        raise WeightsError(
            f"{path} is no TensorFlow checkpoint (PREFIX.index and PREFIX.data-00000-of-00001), no Keras .h5 "
            "file and no checkpoint folder of this package; unpack it if it is an archive"
        )
    raise FileNotFoundError(
        f"no weights at {path}: expected a folder of this package, {path}.index (a TensorFlow checkpoint's "
        "prefix has no file ending) or a .h5 file"
    )


def _open_h5(path: Path) -> Source:
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        with h5py.File(path) as file:
            # The root holds the layers in files of weights, and this group in those of models.
            group = file.get("model_weights", file)
            values = {_h5_entry(name): group[name][()] for name in _h5_names(group)}
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"{path} is no HDF5 file or is cut short; get it again ({_first_line(error)})"
        ) from None
    return Source(str(path), "h5", {name: value.shape for name, value in values.items()}, values.__getitem__)


def _h5_names(group: Any) -> list[str]:
    """Return the names of the arrays in an HDF5 group, in the order in which Keras lists their layers."""
    names: list[str] = []
    group.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    layers = [
        name.decode() if isinstance(name, bytes) else name for name in group.attrs.get("layer_names", ())
    ]
    position = {name: i for i, name in enumerate(layers)}
    return sorted(names, key=lambda name: position.get(name.split("/")[0], len(position)))


def _h5_entry(name: str) -> str:
    """Return layer/kernel for layer/layer/kernel:0."""
    return "/".join(name.removesuffix(":0").split("/")[-2:])


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
