"""An autoencoder as a transformer of scikit-learn: images to codes, in a Pipeline or a grid search.

Shapes: N images, D code dimensions, H height, W width. Images are an array (N, H, W), (N, H, W, C) or
(N, C, H, W), of uint8 or of floats in [0, 1]; or flattened square images (N, H * W) or (N, H * W * 3), as in
the data sets of scikit-learn.
"""

from __future__ import annotations

import math
import tempfile
from numbers import Number
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, from_numpy

from autoencode.errors import ConfigError
from autoencode.models.model_file import load_model
from autoencode.training.train import train

if TYPE_CHECKING:
    from sklearn.utils import Tags

    from autoencode.models.autoencoder import Autoencoder


class AutoencoderTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Images to codes and back.

    Rows of values, (N, F), are checked as every estimator of scikit-learn checks them, with its messages; any
    other images as `train` does. It passes scikit-learn's own checks of estimators, on rows that are images.

    Args:
        preset: a name in `PRESETS`.
        code_size: D; None for what suits the number of images.
        epochs: passes over the images; None for what suits their number.
        size: of the images, see `train`; None for what suits them.
        random_state: the seed.
        settings: further settings of `train`.

    Attributes:
        model_: the trained `Autoencoder`.
        n_features_in_: F, if it was trained on rows of values.
    """

    model_: Autoencoder

    def __init__(
        self,
        preset: str = "best",
        code_size: int | None = None,
        epochs: int | None = None,
        size: int | str | None = None,
        random_state: int = 0,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.preset, self.code_size, self.epochs, self.size = preset, code_size, epochs, size
        self.random_state, self.settings = random_state, settings

    def __sklearn_tags__(self) -> Tags:
        """Say that it takes images, not tables of numbers."""
        tags: Tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.positive_only = True
        tags.transformer_tags.preserves_dtype = ["float32"]  # codes are that, whatever the images are
        return tags

    @property
    def _n_features_out(self) -> int:
        """Dimensions of a code, by which scikit-learn names the columns of a table of codes."""
        return self.model_.config.code_size

    def fit(self, X: Any, y: object = None) -> AutoencoderTransformer:  # noqa: ANN401
        """Train on images of any kind that `train` takes.

        Raises:
            AutoencodeError: raised by `train`.
        """
        given = {"code_size": self.code_size, "epochs": self.epochs, "size": self.size}
        asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        images = self._checked(X, reset=True)
        with tempfile.TemporaryDirectory(prefix="autoencode-") as folder:
            run = train(
                images,
                Path(folder) / "run",
                preset=self.preset,
                seed=self.random_state,
                **asked,
                # No method decodes by a sharp decoder.
                **{"perceptual": 0.0, **(self.settings or {})},
            )
            self.model_ = load_model(run.model_path)
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:  # noqa: ANN401
        """Return the codes (N, D) of images."""
        check_is_fitted(self)
        return self.model_.encode(self._checked(X)).numpy()

    def inverse_transform(self, X: Any) -> NDArray[np.float32]:  # noqa: ANN401
        """Return the images (N, H, W, 3) in [0, 1] of codes (N, D)."""
        check_is_fitted(self)
        return (
            self.model_.decode(from_numpy(np.asarray(X, np.float32)), "faithful").permute(0, 2, 3, 1).numpy()
        )

    def score_samples(self, X: Any) -> NDArray[np.float64]:  # noqa: ANN401
        """Return minus the mean squared error (N,) of the reconstruction of each image: higher is better."""
        check_is_fitted(self)
        images: Tensor = self.model_.read(self._checked(X))
        errors = (self.model_.reconstruct(images, "faithful") - images).square().flatten(1).mean(1)
        return -errors.double().numpy()

    def score(self, X: Any, y: object = None) -> float:  # noqa: ANN401
        """Return the mean of `score_samples`, by which a grid search chooses."""
        return float(self.score_samples(X).mean())

    def _checked(self, given: Any, *, reset: bool = False) -> Any:  # noqa: ANN401
        """Return rows of values as images, and anything else as it is.

        Raises:
            ValueError: the rows are sparse, complex, negative, not finite, or of another length than before;
                or arrays of images are of another shape than before.
            ConfigError: they are no square images.
        """
        if isinstance(given, list | tuple) and given and isinstance(given[0], list | tuple):
            is_rows = bool(given[0]) and isinstance(given[0][0], Number)
        elif hasattr(given, "columns"):  # a data frame: of values, or of the paths of images
            is_rows = "path" not in (str(name).lower() for name in given.columns)
        else:
            is_rows = issparse(given) or (hasattr(given, "__array__") and getattr(given, "ndim", 2) in (1, 2))
        if not is_rows:
            shape = tuple(given.shape[1:]) if getattr(given, "ndim", 0) > 2 else None
            fitted = getattr(self, "_shape", None)
            if reset:
                self._shape = shape
            elif shape and fitted and shape != fitted:
                raise ValueError(f"Images of shape {shape} are given, and it was fitted to {fitted}.")
            return given
        return self._images(validate_data(self, given, reset=reset, ensure_non_negative=True))

    @staticmethod
    def _images(rows: NDArray[Any]) -> NDArray[Any]:
        """Return rows of values (N, F) as the square images that they are, (N, H, H, 1 or 3)."""
        for channels in (1, 3):
            side = math.isqrt(rows.shape[1] // channels)
            if side and channels * side * side == rows.shape[1]:
                return rows.reshape(len(rows), side, side, channels)
        raise ConfigError(
            f"Rows of {rows.shape[1]:,} values are no square images. Give images as (N, H, W) or "
            "(N, H, W, 3)."
        )
