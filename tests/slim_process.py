"""A process for slim's networks: Keras layers made in a graph invalidate those made outside it."""

import importlib
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from types import ModuleType
from typing import Any


@contextmanager
def slim_process() -> Iterator[Callable[..., Any]]:
    """Yield what calls a function of a module, with what can be pickled, in a process of its own."""
    # What sets the environment of TensorFlow comes before the function's module, which imports it.
    first = {"initializer": importlib.import_module, "initargs": ("launch",)}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), **first) as process:
        yield lambda function, *args, **keywords: process.submit(function, *args, **keywords).result()


def import_slim(*names: str) -> list[ModuleType]:
    """Return `tf_slim` and what `names` has of `tf_slim.nets`."""
    # tf_slim's batch norm asks TensorFlow for layers that tf_keras 2.20 holds one package deeper.
    sys.modules["tf_keras.legacy_tf_layers"] = importlib.import_module("tf_keras.src.legacy_tf_layers")
    modules = ["tf_slim", *(f"tf_slim.nets.{name}" for name in names)]
    return [importlib.import_module(module) for module in modules]


def graph_session() -> Any:
    """Return a session that does not rewrite its graphs, each of which runs once."""
    import tensorflow as tf

    config = tf.compat.v1.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    return tf.compat.v1.Session(config=config)
