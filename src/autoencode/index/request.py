"""The images that an index is made of: packed, and turned into codes a batch at a time.

Shapes: N rows of a pack, B batch, D values in a code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autoencode.data.manifest import is_pack
from autoencode.data.pack import Pack, open_pack, pack_folder
from autoencode.embedding import EMBEDDINGS, Columns, ImageEncoder, image_encoder, over_pack
from autoencode.errors import ConfigError, ImageFolderError, ImageIndexError
from autoencode.models.autoencoder import INFERENCE_BATCH, Autoencoder

if TYPE_CHECKING:
    from autoencode.cluster import Cluster
    from autoencode.configuration import Distance, Embedding
    from autoencode.data.preprocessing import Limits
    from autoencode.index.neighbours import Floats
    from autoencode.index.settings import IndexSettings

DEFAULT_EMBEDDING: Embedding = "code"
ANOTHER = "Choose another output, or delete the index to make it anew."


@dataclass(frozen=True)
class Request:
    """What `build_index` was given, the model loaded; wherever the index is kept."""

    model: Autoencoder
    model_path: Path | None
    source: Path
    embedding: Embedding | None
    distance: Distance | None
    limits: Limits | None
    progress: Callable[[int, int], None] | None
    packing_progress: Callable[[int, int], None] | None
    cluster: Cluster | None

    def encoder(self, old: IndexSettings | None) -> ImageEncoder:
        """Return what images are encoded with: as asked for, as before, or as usual.

        Raises:
            ConfigError: the model was never saved, or there are no such features.
            MissingExtraError: pretrained features need the optional part `eval`.
        """
        encoder = image_encoder(self.model, self.embedding or (old.embedding if old else DEFAULT_EMBEDDING))
        if not encoder.digest:
            raise ConfigError(
                "The model has no file yet, by which its codes are known. Save and load it first."
            )
        return encoder

    def distance_of(self, encoder: ImageEncoder, old: IndexSettings | None) -> Distance:
        """Return how codes are compared: as asked for, as before, or as usual."""
        return self.distance or (old.space.distance if old else EMBEDDINGS[encoder.kind].distance)

    def pack(self, encoder: ImageEncoder, out: Path | str) -> Pack:
        """Return the images: the pack that the source is, or a pack of the folder that it is, made at `out`.

        Raises:
            ConfigError: it is a pack with another preprocessing than the encoder needs.
            ImageFolderError: it has no image that can be used; and see `pack_folder`.
        """
        source, wanted = self.source, encoder.preprocessing
        if not is_pack(source):
            return pack_folder(source, out, wanted, limits=self.limits, progress=self.packing_progress)
        pack = open_pack(source)
        have, want = pack.preprocessing.to_json(), wanted.to_json()
        different = [f"{name} {have[name]}, not {want[name]}" for name in have if have[name] != want[name]]
        if different:
            raise ConfigError(
                f"The pack {source} was made with {'; '.join(different)} as the model needs. "
                f"Give the folder it was made of: {pack.folder}"
            )
        if not len(pack):
            raise ImageFolderError(f"The pack {source} has no image that can be used.")
        return pack


def codes_of(
    encoder: ImageEncoder, pack: Pack, rows: NDArray[np.int64], cluster: Cluster | None
) -> Iterator[Floats]:
    """Yield codes (B, D) of the images of `rows` (N,), in that order.

    Raises:
        ImageIndexError: the model gives codes that are not finite.
    """

    def encode(images: Tensor) -> Columns:
        return {"codes": encoder.encode(images)}

    for columns in over_pack(encode, pack, rows, INFERENCE_BATCH, cluster):
        codes = columns["codes"]
        if not np.isfinite(codes).all():
            raise ImageIndexError("The model gives codes that are not finite; they cannot be compared.")
        yield codes
