"""Compute the objective of a batch: the input of the model, its target, and the loss of its output.

Shapes: B batch, D code size. Images are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from autoencode.data.augmentation import horizontal_flip, random_patch, random_shift
from autoencode.data.corruptions import corrupt, parse_corruptions
from autoencode.data.loader import random_seed
from autoencode.training.losses import Terms, beta_at, terms
from autoencode.training.self_supervised import FIRST_SHARE, damaged_again, mean_after_cut, recorrupted

if TYPE_CHECKING:
    from autoencode.data.loader import LocalBatch
    from autoencode.models.image_model import ImageModel, Output
    from autoencode.training.checkpoint import TrainState
    from autoencode.training.config import TrainConfig
    from autoencode.training.run import Record
    from autoencode.training.runtime import Runtime


class Views(NamedTuple):
    """The images of a batch as a step takes them.

    Attributes:
        seen: (B, 3, H, W), given to the model.
        target: (B, 3, H, W) that it should return.
        noise: (B, D) standard normal that codes are drawn with; in self-supervised training (B,), the level
            of the noise of the target; otherwise None.
    """

    seen: Tensor
    target: Tensor
    noise: Tensor | None


class Objective:
    """The objective of a run.

    Args:
        config: how the model is trained.
        runtime: of the run.
        steps: in an epoch.
        total_steps: of the whole run, without the perceptual phase.
        starts_trained: whether the first weights are those of a trained model.

    Attributes:
        first_noisy_steps: of self-supervised training, before restored images take the place of clean ones;
            none if the first weights restore already.
        teacher: restores them, with the weights that the model then has, and again those it has after
            `FIRST_SHARE` of the steps. Restored by the weights of each step they would lose a little more
            detail from step to step.
    """

    def __init__(
        self,
        config: TrainConfig,
        runtime: Runtime,
        steps: int,
        total_steps: int,
        *,
        starts_trained: bool = False,
    ) -> None:
        self.config, self.runtime, self.steps, self.total_steps = config, runtime, steps, total_steps
        self.corruptions = parse_corruptions(config.corrupt)
        self.teacher: ImageModel | None = None
        later = math.ceil(FIRST_SHARE * total_steps)
        self.first_noisy_steps = 0 if starts_trained else later
        self._teacher_changes = (self.first_noisy_steps, later)

    def views(self, model: ImageModel, clean: Tensor, local: LocalBatch, purpose: str, draw: int) -> Views:
        """Return the input of a model and its target, for a local batch or a micro-batch.

        Noise, corruptions, flips and shifts depend only on the seed, `purpose`, `draw` and the position
        in the batch.

        Args:
            model: the model.
            clean: (B, 3, H, W), the images of the batch.
            local: its position in the whole batch.
            purpose: "train", "perceptual" or "validation", for which images are neither flipped nor
                shifted.
            draw: number of the step or batch.
        """
        config, training = self.config, purpose != "validation"
        # A generator for each step, not one for the run: a resumed run needs no random state.
        generator = torch.Generator(clean.device).manual_seed(random_seed(purpose, config.seed, draw))
        if training and config.patch:
            scaled = not config.self_supervised
            clean = random_patch(clean, config.patch, generator, local, scaled=scaled)
        if training and config.horizontal_flip:
            clean = horizontal_flip(clean, generator, local)
        if training and config.shift:
            clean = random_shift(clean, config.shift, generator, local)
        if config.self_supervised:
            is_first = not training or draw < self.first_noisy_steps
            return self._noisy_views(clean, generator, local, is_first=is_first)
        seen = corrupt(clean, self.corruptions, generator, training=training, local=local)
        noise = None
        if model.is_vae:
            # Drawn for the whole batch, so that its noise is the same for any number of processes.
            shape = (local.batch_size, model.config.code_size)
            noise = torch.randn(shape, generator=generator, device=clean.device)[local.positions]
        return Views(seen, clean, noise)

    def choose_teacher(self, state: TrainState) -> None:
        """Prepare the next step of a run."""
        if state.teacher and state.step in self._teacher_changes:
            state.teacher.load_state_dict(state.model.state_dict())
        self.teacher = state.teacher

    def _noisy_views(
        self, noisy: Tensor, generator: torch.Generator, local: LocalBatch, *, is_first: bool
    ) -> Views:
        """Return views of images that are noisy themselves, for the first steps or the others."""
        if is_first:
            return Views(*recorrupted(noisy, generator, local))
        assert self.teacher is not None
        with torch.no_grad(), self.runtime.autocast():
            restored = self.teacher(noisy).images
        return Views(*damaged_again(noisy, restored, generator, local))

    def terms(self, model: ImageModel, views: Views, beta: float | Tensor) -> tuple[Terms, Output]:
        """Return the objective of a batch with that weight of the KL, and the output of the model."""
        with self.runtime.autocast():
            output = model(views.seen, views.noise)
        sigma2 = model.sigma2 if self.config.sigma2 == "auto" and model.is_vae else self.config.sigma2
        if sigma2 == "auto":
            sigma2 = 1.0
        compared = output
        if self.config.self_supervised and views.noise is not None:
            # A target whose noise was cut off at black and white is not the clean image on average.
            compared = output._replace(images=mean_after_cut(output.images, views.noise))
        return terms(self.config.loss, views.target, compared, beta, sigma2), output

    def beta(self, step: int) -> float:
        """Return the weight of the KL at a step, counted from 0."""
        config = self.config
        warmup_steps = config.kl_warmup * self.steps
        return beta_at(step, self.total_steps, warmup_steps, config.kl_warmup_cycles, config.beta)

    def measures(self, means: Tensor, model: ImageModel, step: int) -> Record:
        """Name the means of an epoch, (4,): loss, reconstruction, kl, mse; it ended after so many steps."""
        loss, reconstruction, divergence, _ = means.tolist()
        record: Record = {"train_loss": loss}
        if model.is_vae:
            record |= {"train_reconstruction": reconstruction, "train_kl": divergence}
            record |= {"beta": self.beta(step - 1), "sigma2": float(model.sigma2)}
        return record
