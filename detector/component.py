"""A component: one of the three parts of the detector, as an ordered row of named stages.

The unit of freezing is the variable, and its name is its path: the attributes that lead to it from the
model (`feature_extractor/Mixed_3b/Branch_1/Conv2d_0b_3x3/kernel`).  Paths are read off the attributes,
because `tf.Variable.name` depends on how many models were built before in the same process.
"""

from collections.abc import Iterator, Mapping, Sequence

import tensorflow as tf
import tf_keras


class Component(tf_keras.Model):
    """A model whose public layer attributes, in the order they were set, are its stages."""

    @property
    def stages(self) -> dict[str, tf_keras.layers.Layer]:
        """The stages by name, in the order of the forward pass."""
        return dict(child_layers(self))

    @property
    def layers(self) -> list[tf_keras.layers.Layer]:
        """Every layer with variables of its own or no layers inside, in the order of the forward pass.

        Much like `Model.layers` of the same network written as a flat functional model, less inputs,
        activations, sums and concatenations: what the index slices people know from Keras
        (`layers[:100]`) select from.
        """
        return [layer for _, layer in walk_layers(self) if layer is not self]


def child_layers(layer: tf_keras.layers.Layer) -> Iterator[tuple[str, tf_keras.layers.Layer]]:
    """Yield (attribute name, layer) of the layers directly inside `layer`, in the order they were set.

    A functional model has no attributes for its layers; there the layers' own names serve.
    """
    if isinstance(layer, tf_keras.Model) and getattr(layer, "_is_graph_network", False):
        yield from ((child.name, child) for child in layer.layers)
        return
    for name, value in vars(layer).items():
        if not name.startswith("_") and isinstance(value, tf_keras.layers.Layer):
            yield name, value


def build_inner(layer: tf_keras.layers.Layer, input_shape: "tf.TensorShape | Sequence[int | None]") -> None:
    """Make the variables of the `inner_layers` of `layer` for inputs of `input_shape`."""
    for inner, shape in layer.inner_layers(input_shape):
        inner.build(shape)


def own_variables(layer: tf_keras.layers.Layer) -> dict[str, tf.Variable]:
    """Return {attribute name: variable} of the variables that belong to `layer` itself."""
    return {
        name: value
        for name, value in vars(layer).items()
        if not name.startswith("_") and isinstance(value, tf.Variable)
    }


def walk_layers(layer: tf_keras.layers.Layer, path: str = "") -> Iterator[tuple[str, tf_keras.layers.Layer]]:
    """Yield (path, layer) at or below `layer` of those with variables of their own or no layers inside."""
    children = list(child_layers(layer))
    if not children or own_variables(layer):
        yield path, layer
    for name, child in children:
        yield from walk_layers(child, f"{path}/{name}" if path else name)


def named_variables(components: Mapping[str, tf_keras.layers.Layer]) -> dict[str, tf.Variable]:
    """Return {path: variable} of every variable of the components, in the order of the forward pass."""
    return {
        f"{path}/{leaf}": variable
        for name, component in components.items()
        for path, layer in walk_layers(component, name)
        for leaf, variable in own_variables(layer).items()
    }
