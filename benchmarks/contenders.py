"""The paper's autoencoder as users of each framework would write and train it, from the same first weights.

A contender is `make(images, weights) -> run`, and `run(steps)` trains that many steps on the images, again
and again the same batch, and returns the losses. Keras and JAX keep channels last. With stride 2, they align
a transposed convolution to the other side of the image than PyTorch, so for them images and kernels are
mirrored both ways: the same function, and the same losses.

Shapes: B batch, H height, W width, D code size. Images are (B, 3, H, W) float32 in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.float32]
Weights = dict[str, NDArray[np.float32]]
Run = Callable[[int], list[float]]

WIDTHS, CODE, LEARNING_RATE = (32, 64, 128, 256), 256, 2e-3


def plain_network(side: int) -> Any:  # noqa: ANN401
    """The network in a tutorial's PyTorch: ReLU before pooling, channels first."""
    from torch import nn

    encoder, decoder, inputs = [], [], 3
    for width in WIDTHS:
        encoder += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        inputs = width
    grid = side // 16
    for width in (*WIDTHS[-2::-1], 3):
        decoder += [nn.ConvTranspose2d(inputs, width, 3, stride=2, padding=1, output_padding=1)]
        decoder += [nn.ReLU()] if width != 3 else [nn.Sigmoid()]
        inputs = width
    features = WIDTHS[-1] * grid * grid
    return nn.ModuleDict(
        {
            "encoder": nn.Sequential(*encoder, nn.Flatten(), nn.Linear(features, CODE)),
            "decoder": nn.Sequential(
                nn.Linear(CODE, features), nn.ReLU(), nn.Unflatten(1, (WIDTHS[-1], grid, grid)), *decoder
            ),
        }
    )


def load_plain(network: Any, weights: Weights) -> None:  # noqa: ANN401
    """Put the first weights in; both lists are in the order of the layers."""
    import torch

    with torch.no_grad():
        for parameter, value in zip(network.parameters(), weights.values(), strict=True):
            parameter.copy_(torch.from_numpy(value))


def first_weights(side: int) -> Weights:
    """Random first weights, by PyTorch's default, in the order of the layers."""
    import torch

    torch.manual_seed(0)
    return {name: p.detach().numpy() for name, p in plain_network(side).named_parameters()}


def eager(images: Images, weights: Weights) -> Run:
    """PyTorch as a tutorial writes it."""
    import torch

    network = plain_network(images.shape[-1])
    load_plain(network, weights)
    optimizer = torch.optim.Adamax(network.parameters(), lr=LEARNING_RATE)
    batch = torch.from_numpy(images)

    def run(steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            restored = network["decoder"](network["encoder"](batch))
            loss = torch.nn.functional.mse_loss(restored, batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return run


def ours(images: Images, weights: Weights, precision: str = "auto") -> Run:
    """This package: its own step, as `train` takes it."""
    from autoencode.training.process import keep_freed_memory

    keep_freed_memory()
    import torch

    from autoencode import Autoencoder, Preprocessing
    from autoencode.training.losses import terms
    from autoencode.training.presets import settings
    from autoencode.training.runtime import choose_runtime

    runtime = choose_runtime("cpu", precision)  # type: ignore[arg-type]
    config, train_config = settings("paper-ae")
    model = Autoencoder(config, Preprocessing(images.shape[2], images.shape[3]))
    ordered = [*model.encoder.parameters(), *model.to_mean.parameters(), *model.decoder.parameters()]
    with torch.no_grad():
        for parameter, value in zip(ordered, weights.values(), strict=True):
            parameter.copy_(torch.from_numpy(value))
    runtime.model_to_device(model)
    optimizer = torch.optim.Adamax(model.parameters(), lr=train_config.learning_rate)
    batch = runtime.to_device(torch.from_numpy(images))

    def run(steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with runtime.autocast():
                output = model(batch)
            result = terms("mse", batch, output, 1.0, 1.0)
            result.loss.backward()
            optimizer.step()
            losses.append(float(result.loss.detach()))
        return losses

    return run


def ours_fp32(images: Images, weights: Weights) -> Run:
    """This package without bf16."""
    return ours(images, weights, "fp32")


def lightning(images: Images, weights: Weights) -> Run:
    """PyTorch Lightning."""
    import logging
    import warnings

    import torch
    from lightning.pytorch import LightningModule, Trainer

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = plain_network(images.shape[-1])
            load_plain(self.network, weights)
            self.adamax = torch.optim.Adamax(self.network.parameters(), lr=LEARNING_RATE)
            self.losses: list[float] = []

        def training_step(self, batch: Any) -> Any:  # noqa: ANN401
            loss = torch.nn.functional.mse_loss(
                self.network["decoder"](self.network["encoder"](batch)), batch
            )
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> Any:  # noqa: ANN401
            return self.adamax

    module, batch = Module(), torch.from_numpy(images)

    def run(steps: int) -> list[float]:
        module.losses.clear()
        trainer = Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, torch.utils.data.DataLoader([batch] * steps, batch_size=None))
        return list(module.losses)

    return run


def pythae(images: Images, weights: Weights) -> Run:
    """pythae's own trainer, with the network as its custom encoder and decoder."""
    import tempfile

    import torch
    from pythae.data.datasets import BaseDataset
    from pythae.models import AE, AEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    network = plain_network(images.shape[-1])
    load_plain(network, weights)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network["encoder"]

        def forward(self, x: Any) -> Any:  # noqa: ANN401
            return ModelOutput(embedding=self.layers(x))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network["decoder"]

        def forward(self, z: Any) -> Any:  # noqa: ANN401
            return ModelOutput(reconstruction=self.layers(z))

    model = AE(AEConfig(input_dim=images.shape[1:], latent_dim=CODE), Encoder(), Decoder())
    config = BaseTrainerConfig(
        output_dir=tempfile.mkdtemp(),
        num_epochs=1,
        per_device_train_batch_size=len(images),
        learning_rate=LEARNING_RATE,
        optimizer_cls="Adamax",
        no_cuda=True,
    )
    data = BaseDataset(torch.from_numpy(images), torch.zeros(len(images)))
    trainer = BaseTrainer(model=model, train_dataset=data, training_config=config)
    trainer.prepare_training()
    values = images[0].size  # its loss is summed over an image

    def run(steps: int) -> list[float]:
        return [float(trainer.train_step(epoch + 1)) / values for epoch in range(steps)]

    return run


def keras(images: Images, weights: Weights, policy: str = "float32") -> Run:
    """Keras 3 on TensorFlow."""
    import os

    os.environ.update(KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="3")
    import keras as k
    import tensorflow as tf

    _limit_threads(tf)
    k.mixed_precision.set_global_policy(policy)
    side = images.shape[-1]
    grid = side // 16
    layers: list[Any] = [k.layers.Input((side, side, 3))]
    for width in WIDTHS:
        layers += [k.layers.Conv2D(width, 3, padding="same"), k.layers.ReLU(), k.layers.MaxPooling2D(2)]
    layers += [k.layers.Flatten(), k.layers.Dense(CODE), k.layers.Dense(WIDTHS[-1] * grid * grid)]
    layers += [k.layers.ReLU(), k.layers.Reshape((grid, grid, WIDTHS[-1]))]
    for width in WIDTHS[-2::-1]:
        layers += [k.layers.Conv2DTranspose(width, 3, strides=2, padding="same"), k.layers.ReLU()]
    layers += [k.layers.Conv2DTranspose(3, 3, strides=2, padding="same", dtype="float32")]
    layers += [k.layers.Activation("sigmoid", dtype="float32")]
    model = k.Sequential(layers)
    model.set_weights(channels_last_weights(weights, grid))
    model.compile(optimizer=k.optimizers.Adamax(LEARNING_RATE, epsilon=1e-8), loss="mse")
    batch = tf.constant(mirrored_channels_last(images))

    def run(steps: int) -> list[float]:
        return [float(model.train_on_batch(batch, batch)) for _ in range(steps)]

    return run


def _limit_threads(tensorflow: Any) -> None:  # noqa: ANN401 - it is a module
    """Limit the threads of TensorFlow by OMP_NUM_THREADS, too, which it does not read."""
    import os

    if threads := int(os.environ.get("OMP_NUM_THREADS", "0")):
        tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
        tensorflow.config.threading.set_inter_op_parallelism_threads(threads)


def keras_bf16(images: Images, weights: Weights) -> Run:
    """Keras 3 on TensorFlow with its mixed_bfloat16 policy."""
    return keras(images, weights, "mixed_bfloat16")


def jax(images: Images, weights: Weights) -> Run:
    """JAX: flax nnx and optax, the step compiled."""
    import jax.numpy as jnp
    import optax
    from flax import nnx

    side = images.shape[-1]
    grid = side // 16
    values = iter(channels_last_weights(weights, grid))

    def filled(layer: Any) -> Any:  # noqa: ANN401
        layer.kernel[...] = jnp.asarray(next(values))
        layer.bias[...] = jnp.asarray(next(values))
        return layer

    class Network(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.down = nnx.List(
                [
                    filled(nnx.Conv(i, o, (3, 3), rngs=rngs))
                    for i, o in zip((3, *WIDTHS), WIDTHS, strict=False)
                ]
            )
            self.to_code = filled(nnx.Linear(WIDTHS[-1] * grid * grid, CODE, rngs=rngs))
            self.expand = filled(nnx.Linear(CODE, WIDTHS[-1] * grid * grid, rngs=rngs))
            outputs = (*WIDTHS[-2::-1], 3)
            self.up = nnx.List(
                [
                    # Keras keeps (k, k, out, in), as flax does with transpose_kernel.
                    filled(nnx.ConvTranspose(i, o, (3, 3), strides=(2, 2), transpose_kernel=True, rngs=rngs))
                    for i, o in zip(WIDTHS[::-1], outputs, strict=True)
                ]
            )

        def __call__(self, x: Any) -> Any:  # noqa: ANN401
            for layer in self.down:
                x = nnx.max_pool(nnx.relu(layer(x)), (2, 2), (2, 2))
            x = nnx.relu(self.expand(self.to_code(x.reshape(len(x), -1))))
            x = x.reshape(-1, grid, grid, WIDTHS[-1])
            for index, layer in enumerate(self.up):
                x = layer(x)
                x = nnx.relu(x) if index < len(self.up) - 1 else nnx.sigmoid(x)
            return x

    model = Network()
    optimizer = nnx.Optimizer(model, optax.adamax(LEARNING_RATE), wrt=nnx.Param)
    batch = jnp.asarray(mirrored_channels_last(images))

    @nnx.jit
    def step(model: Any, optimizer: Any, batch: Any) -> Any:  # noqa: ANN401
        loss, gradients = nnx.value_and_grad(lambda m: jnp.mean((m(batch) - batch) ** 2))(model)
        optimizer.update(model, gradients)
        return loss

    def run(steps: int) -> list[float]:
        return [float(step(model, optimizer, batch)) for _ in range(steps)]

    return run


def mirrored_channels_last(images: Images) -> Images:
    """(B, 3, H, W) to (B, H, W, 3), mirrored both ways."""
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1)[:, ::-1, ::-1])


def channels_last_weights(weights: Weights, grid: int) -> list[Images]:
    """PyTorch's weights as Keras keeps them, for mirrored images."""
    found, deepest = [], WIDTHS[-1]
    for index, (name, value) in enumerate(weights.items()):
        if value.ndim == 4:
            # Conv2d (out, in, k, k) -> (k, k, in, out); ConvTranspose2d (in, out, k, k) -> (k, k, out, in).
            value = value.transpose(2, 3, 1, 0)[::-1, ::-1]
        elif value.ndim == 2 and name.startswith("encoder"):
            maps = value.reshape(-1, deepest, grid, grid).transpose(2, 3, 1, 0)[::-1, ::-1]
            value = maps.reshape(-1, maps.shape[-1])
        elif value.ndim == 2:
            maps = value.reshape(deepest, grid, grid, -1).transpose(3, 1, 2, 0)[:, ::-1, ::-1]
            value = maps.reshape(len(maps), -1)
        elif name.startswith("decoder") and len(value) == deepest * grid * grid:
            value = value.reshape(deepest, grid, grid).transpose(1, 2, 0)[::-1, ::-1].reshape(-1)
        found.append(np.ascontiguousarray(value))
        assert index < len(weights)
    return found


def best_plain(images: Images, weights: Weights) -> Run:
    """The network of `best` with PyTorch's own step: fp32, channels first, from its PCA start on."""
    return _best(images, plain=True)


def best(images: Images, weights: Weights) -> Run:
    """The same as this package trains it."""
    from autoencode.training.process import keep_freed_memory

    keep_freed_memory()
    return _best(images, plain=False)


def best_keras(images: Images, weights: Weights, policy: str = "float32") -> Run:
    """The network of `best` in Keras 3 on TensorFlow."""
    import os

    os.environ.update(KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="3")
    import keras as k
    import tensorflow as tf

    from best_in_keras import best_in_keras

    _limit_threads(tf)
    k.mixed_precision.set_global_policy(policy)
    model, config = _best_model(images)
    network = best_in_keras(k, model)
    optimizer = k.optimizers.AdamW(
        config.learning_rate, weight_decay=0.01, beta_2=0.99, epsilon=1e-8, global_clipnorm=1.0
    )
    network.compile(optimizer=optimizer, loss="mse")
    batch = tf.constant(images.transpose(0, 2, 3, 1))

    def run(steps: int) -> list[float]:
        return [float(network.train_on_batch(batch, batch)) for _ in range(steps)]

    return run


def best_keras_bf16(images: Images, weights: Weights) -> Run:
    """The same with the mixed_bfloat16 policy."""
    return best_keras(images, weights, "mixed_bfloat16")


def _best_model(images: Images) -> tuple[Any, Any]:
    """The model of `best` at its PCA start, and how it is trained."""
    import torch

    from autoencode import Autoencoder, Preprocessing
    from autoencode.models.pca import start_at_pca
    from autoencode.training.presets import settings

    config, train_config = settings("best", code_size=128)
    torch.manual_seed(0)
    model = Autoencoder(config, Preprocessing(images.shape[2], images.shape[3]))
    varied = np.random.default_rng(0).random((512, 3, *images.shape[2:]), np.float32)
    start_at_pca(model, [torch.from_numpy(varied)])
    return model, train_config


def _best(images: Images, *, plain: bool) -> Run:
    import torch

    from autoencode.training.optim import make_optimizer
    from autoencode.training.runtime import Runtime, choose_runtime

    runtime = Runtime(torch.device("cpu"), False, False) if plain else choose_runtime("cpu")
    model, train_config = _best_model(images)
    runtime.model_to_device(model)
    if plain:
        model.decoder.linear.enlargement = torch.nn.Upsample(images.shape[2:], mode="bilinear")
        groups = model.parameter_groups()
        optimizer = torch.optim.AdamW(
            groups, train_config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01
        )
    else:
        optimizer = make_optimizer(model, train_config)
    batch = runtime.to_device(torch.from_numpy(images))

    def run(steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            with runtime.autocast():
                restored = model(batch).images
            loss = torch.nn.functional.mse_loss(restored.float(), batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        return losses

    return run


CONTENDERS: dict[str, tuple[str, Callable[[Images, Weights], Run]]] = {
    "eager": ("PyTorch, as a tutorial writes it", eager),
    "lightning": ("PyTorch Lightning", lightning),
    "pythae": ("pythae's BaseTrainer", pythae),
    "keras": ("Keras 3 on TensorFlow, fp32", keras),
    "keras-bf16": ("Keras 3 on TensorFlow, mixed_bfloat16", keras_bf16),
    "jax": ("JAX (flax nnx, optax, jit)", jax),
    "ours-fp32": ("autoencode, fp32", ours_fp32),
    "ours": ("autoencode", ours),
    "best-plain": ("the network of `best`, PyTorch in fp32", best_plain),
    "best-keras": ("the network of `best`, Keras 3 on TensorFlow, fp32", best_keras),
    "best-keras-bf16": ("the network of `best`, Keras 3, mixed_bfloat16", best_keras_bf16),
    "best": ("autoencode, `best`", best),
}
