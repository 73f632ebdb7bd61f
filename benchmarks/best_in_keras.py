"""The network of `best` as a user of Keras would write it, with the weights of ours.

TensorFlow keeps channels last, and cuts images into patches whose channels lie in the order (row, column,
colour), where PyTorch has (colour, row, column): weights that read or write such channels are put in that
order, and the function is the same. Keras has one learning rate for all weights.

Shapes: B batch, H height, W width, C channels. Images are (B, H, W, 3) float32 in [0, 1].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoencode import Autoencoder
from autoencode.models.convolutions import _BEYOND, MEAN, PATCH, SPREAD

Weight = NDArray[np.float32]


def best_in_keras(keras: Any, model: Autoencoder) -> Any:  # noqa: ANN401
    """Return a Keras model of the same function as a model of `best`, under the policy of Keras."""
    height, width = model.preprocessing.height, model.preprocessing.width
    widths, layers = model.config.widths, keras.layers
    deepest, *grid = model.decoder.grid
    named: dict[str, Any] = {}

    def layer(name: str, made: Any) -> Any:  # noqa: ANN401
        named[name] = made
        return made

    def block(name: str, features: Any) -> Any:  # noqa: ANN401
        inner = features
        for index in (1, 3):
            convolution = layers.Conv2D(features.shape[-1], 3, padding="same")
            inner = layer(f"{name}.layers.{index}", convolution)(layers.Activation("silu")(inner))
        return layers.Add()([features, inner])

    def patches(images: Any) -> Any:  # noqa: ANN401
        return SpaceToDepth(PATCH)(layers.Rescaling(1 / SPREAD, -MEAN / SPREAD)(images))

    class SpaceToDepth(layers.Layer):
        def __init__(self, side: int) -> None:
            super().__init__()
            self.side = side

        def call(self, images: Any) -> Any:  # noqa: ANN401
            import tensorflow as tf

            return tf.nn.space_to_depth(images, self.side)

    class DepthToSpace(SpaceToDepth):
        def call(self, images: Any) -> Any:  # noqa: ANN401
            import tensorflow as tf

            return tf.nn.depth_to_space(images, self.side)

    images = keras.Input((height, width, 3))
    features = layer("encoder.layers.0", layers.Conv2D(widths[0], 3, padding="same"))(patches(images))
    for depth, deeper in enumerate((*widths[1:], 0)):
        features = block(f"encoder.layers.{2 * depth + 1}", features)
        if deeper:
            features = layer(f"encoder.layers.{2 * depth + 2}", layers.Conv2D(deeper, 2, strides=2))(features)
    flat = layers.Flatten()(layers.Activation("silu")(features))
    exact = {"dtype": "float32"}  # as ours: the linear path and the code
    code = layer("to_mean", layers.Dense(model.config.code_size, **exact))(flat)
    pooling = model.linear.pooling
    pooled = layers.AveragePooling2D(pooling, **exact)(images) if pooling > 1 else images
    linear = layer("linear.matrix", layers.Dense(model.config.code_size, **exact))
    code = layers.Add(**exact)([code, linear(layers.Flatten(**exact)(pooled))])

    small = model.decoder.linear.small
    painted = layer("decoder.linear.matrix", layers.Dense(int(np.prod(small)), **exact))(code)
    painted = layers.Reshape((small[1], small[2], 3), **exact)(painted)
    if pooling > 1:
        painted = layers.UpSampling2D(pooling, interpolation="bilinear", **exact)(painted)
    seen = [layer("decoder.down.0", layers.Conv2D(widths[0], 3, padding="same"))(patches(painted))]
    for depth, deeper in enumerate(widths[1:], 1):
        down = layer(f"decoder.down.{depth}", layers.Conv2D(deeper, 2, strides=2))
        seen.append(down(layers.Activation("silu")(seen[-1])))
    features = layer("decoder.expand", layers.Dense(grid[0] * grid[1] * deepest))(code)
    features = layers.Reshape((*grid, deepest))(features)
    for depth in reversed(range(len(widths))):
        features = block(f"decoder.blocks.{depth}", layers.Add()([features, seen[depth]]))
        if depth:
            up = layer(f"decoder.up.{depth - 1}", layers.Conv2D(4 * widths[depth - 1], 1))
            features = DepthToSpace(2)(up(features))
    out = layer("decoder.out", layers.Conv2D(3 * PATCH**2, 3, padding="same"))
    added = DepthToSpace(PATCH)(out(layers.Activation("silu")(features)))
    scaled = layers.Rescaling(float(model.decoder.scale), **exact)(added)
    total = layers.Add(**exact)([painted, scaled])
    within = layers.Rescaling(1 - _BEYOND, **exact)(layers.ReLU(max_value=1, **exact)(total))
    beyond = layers.Rescaling(_BEYOND, **exact)(total)
    network = keras.Model(images, layers.Add(**exact)([within, beyond]))
    _load(named, model)
    return network


def _load(named: dict[str, Any], model: Autoencoder) -> None:
    """Put the weights of our layers into those of Keras."""
    ours = dict(model.named_modules())
    deepest, pooled = model.decoder.grid, model.decoder.linear.small
    flat_inputs = {"to_mean": deepest, "linear.matrix": pooled}
    flat_outputs = {"decoder.expand": deepest, "decoder.linear.matrix": pooled}
    patches = {"encoder.layers.0", "decoder.down.0"}
    for name, theirs in named.items():
        weight, bias = (p.detach().numpy() for p in (ours[name].weight, ours[name].bias))
        if name in patches:
            weight = _last(weight.swapaxes(0, 1), (3, PATCH, PATCH)).swapaxes(0, 1)
        elif name == "decoder.out":
            weight, bias = (_last(one, (3, PATCH, PATCH)) for one in (weight, bias))
        elif name.startswith("decoder.up"):
            weight, bias = (_last(one, (-1, 2, 2)) for one in (weight, bias))
        elif name in flat_inputs:
            weight = _last(weight.T, flat_inputs[name]).T
        elif name in flat_outputs:
            weight, bias = (_last(one, flat_outputs[name]) for one in (weight, bias))
        theirs.set_weights([weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T, bias])


def _last(values: Weight, shape: tuple[int, int, int]) -> Weight:
    """Reorder the first axis of values from (C, H, W), as PyTorch flattens, to (H, W, C)."""
    return values.reshape(*shape, *values.shape[1:]).swapaxes(0, 1).swapaxes(1, 2).reshape(values.shape)
