"""A model measured on validation images, at the end of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from autoencode.metrics.latents import RunningVariance, active_units, bits_per_dimension, in_fp64, merged
from autoencode.models.autoencoder import Autoencoder

if TYPE_CHECKING:
    from autoencode.data.loader import LocalBatch
    from autoencode.models.image_model import ImageModel
    from autoencode.training.distributed import Processes
    from autoencode.training.objective import Objective, Views
    from autoencode.training.perceptual import PerceptualPhase
    from autoencode.training.run import Record

Batches = Iterable[tuple[Tensor, "LocalBatch"]]


@torch.inference_mode()
def validate(
    model: ImageModel, objective: Objective, batches: Batches, images: int, step: int, processes: Processes
) -> Record:
    """Return the losses of a model, by their names in metrics.jsonl.

    Args:
        model: the model that would be saved now; left in eval mode.
        objective: of the run.
        batches: what this process computes of each batch.
        images: the number of all of them.
        step: the last one taken, which decides the weight of the KL.
        processes: those that share the batches.
    """
    model.eval()
    sums, means = objective.runtime.zeros(5), RunningVariance()
    for index, (batch, local) in enumerate(batches):
        clean = objective.runtime.to_device(batch)
        views = objective.views(model, clean, local, "validation", index)
        result, output = objective.terms(model, views, objective.beta(step))
        decoded = output.images
        if isinstance(model, Autoencoder) and output.posterior and model.is_vae:
            with objective.runtime.autocast():
                decoded = model.decoder(output.posterior.mean)
            if local.counted:  # an image that stands in for an empty local batch must not count twice
                means.add(output.posterior.mean)
        # The reconstruction a user gets: the decoded mean, without noise, clipped to the range of pixels.
        squared_error = (decoded.float().clamp(0, 1) - clean).square().mean()
        sums += torch.cat([result.measured(), in_fp64(squared_error)[None]]) * local.counted
    sums, means = processes.total(sums), merged(processes.gather(means.on_cpu()))
    loss, reconstruction, kl, _, val_mse = (sums / images).tolist()
    measured: Record = {"val_loss": loss, "val_mse": val_mse}
    if not model.is_vae:
        return measured
    measured |= {
        "val_reconstruction": reconstruction,
        "val_kl": kl,
        "active_units": active_units(means.variance),
    }
    if objective.config.loss == "gaussian":  # the other losses lack the constant of a likelihood
        bits = bits_per_dimension(reconstruction + kl, model.values_per_image)
        measured["val_bits_per_dimension"] = bits
    return measured


@torch.inference_mode()
def validate_decoder(
    phase: PerceptualPhase,
    objective: Objective,
    batches: Callable[[], Batches],
    images: int,
    train_images: int,
    processes: Processes,
) -> Record:
    """Choose how much detail is drawn; return what was measured with it, by its name in the metrics.

    Args:
        phase: holds the decoder.
        batches: yields those of `validate`; called several times.
        train_images: the number of images it was trained on.
        objective, images, processes: as for `validate`.
    """

    def means(measure: Callable[[Views], Tensor], count: int) -> Tensor:
        sums = objective.runtime.zeros(count)
        for index, (batch, local) in enumerate(batches()):
            clean = objective.runtime.to_device(batch)
            views = objective.views(phase.model, clean, local, "validation", index)
            sums += measure(views).flatten() * local.counted
        return processes.total(sums) / images

    if phase.faithful_distance is None:
        phase.faithful_distance = means(partial(phase.validate, decoder="faithful"), 2)[1].item()
    phase.choose_detail(means(phase.detail_terms, 9).view(3, 3))
    error, distance = means(phase.validate, 2).tolist()
    return {
        "val_sharp_mse": error,
        "val_perceptual": distance,
        "val_faithful_perceptual": phase.faithful_distance,
        "sharp_is_kept": float(phase.decide_whether_kept(distance, train_images)),
    }
