"""A request to build an index: the encoder, the pack and the codes that follow from it, for any store.

Shapes: N rows of a pack, B batch, D code dimensions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autoencode.data.listing import Listing
from autoencode.data.manifest import is_pack
from autoencode.data.mapping import Columns, map_pack
from autoencode.data.pack import Pack, location_of, open_pack, pack_folder
from autoencode.data.sources import listed
from autoencode.embedding import (
    AUTO,
    BF16_CODES,
    MOST_FITTED,
    ONNX_SUFFIX,
    ImageEncoder,
    Reduction,
    find_encoder,
    fit_reduction,
    pretrained_for,
)
from autoencode.errors import ConfigError, ImageFolderError, ImageIndexError
from autoencode.index.interface import CHOOSE_ANOTHER, IndexSettings, StoredPath
from autoencode.index.neighbours import VectorSpace, fit_vector_space
from autoencode.models.autoencoder import INFERENCE_BATCH, Autoencoder

if TYPE_CHECKING:
    from autoencode.cluster import Cluster
    from autoencode.configuration import Distance
    from autoencode.data.pack import Progress
    from autoencode.data.preprocessing import Limits
    from autoencode.index.neighbours import Floats

# Codes in bf16 are kept if so much of the nearest images of a sample stays the same; of fewer images than the
# least a share would say nothing.
_AGREEMENT, _NEIGHBOURS = 0.99, 10
_LEAST_COMPARED, _COMPARED = 100, 500


@dataclass(frozen=True)
class BuildRequest:
    """The arguments of `build_index`, with the model loaded, for any store."""

    model: Autoencoder | None
    model_path: Path | None
    source: Path | Listing
    embedding: str | None
    distance: Distance | None
    limits: Limits | None
    progress: Progress | None
    packing_progress: Progress | None
    cluster: Cluster | None

    @property
    def source_name(self) -> str:
        """The folder, pack or table that is indexed, as the index knows it."""
        return self.source.origin if isinstance(self.source, Listing) else location_of(self.source)

    @property
    def folder(self) -> Path:
        """The folder that holds what is indexed."""
        return self.source.folder if isinstance(self.source, Listing) else self.source

    def encoder(self, index: Path | str, old: IndexSettings | None) -> ImageEncoder:
        """Return the encoder asked for; by default that of the index there is, or see `find_encoder`.

        Raises:
            ConfigError: the model was never saved, or the embedding is unknown or needs a model.
            ImageIndexError: the codes of the index were made with another encoder.
            ModelFileError: an ONNX file cannot be used.
            MissingExtraError: an optional part is not installed.
        """
        asked = None if self.embedding == AUTO else self.embedding
        if asked is None and self.model is None and old is not None:
            return old.find_encoder(index)
        kind = asked or (old.embedding if old else self._pretrained())
        encoder = find_encoder(kind, self.model)
        # Without a digest nobody could tell later whether a query is encoded by the same model.
        if not encoder.digest:
            raise ConfigError(
                "The model has no file yet, by which its codes are known. Save and load it first."
            )
        if old is not None:
            old.check_encoder(index, encoder, CHOOSE_ANOTHER)
        return encoder

    def _pretrained(self) -> str:
        """Return the pretrained embedding that suits the source."""
        source = self.source
        if isinstance(source, Listing):
            return pretrained_for(source.paths, self.limits)
        return pretrained_for(open_pack(source) if is_pack(source) else listed(source).paths, self.limits)

    def stored_model_path(
        self, index: Path | str, encoder: ImageEncoder, old: IndexSettings | None
    ) -> StoredPath | None:
        """Return where the model or network is, or where the index says that it was if no path was given."""
        if encoder.kind.endswith(ONNX_SUFFIX):
            return StoredPath.of(Path(encoder.kind), index)
        if self.model_path is None or encoder.is_backbone:
            return old.model_path if old else None
        return StoredPath.of(self.model_path, index)

    def distance_for(self, encoder: ImageEncoder, old: IndexSettings | None) -> Distance:
        """Return the distance asked for; by default that of the index there is, or the encoder's own."""
        return self.distance or (old.vector_space.distance if old else encoder.distance)

    def pack(self, encoder: ImageEncoder, out: Path | str) -> Pack:
        """Return the source if it is a pack, or else a pack of the folder, made or updated at `out`.

        A pretrained network reads the folder that a pack of another size was made of, if it is still there,
        as pixels that were reduced once are not sharp at its own size.

        Raises:
            ConfigError: the pack has another preprocessing than a model needs.
            ImageFolderError: no image can be used; see also `pack_folder`.
        """
        source, wanted = self.source, encoder.preprocessing
        # A pack is never changed: it may be that of a training, which has to stay as the training saw it.
        if not isinstance(source, Listing) and is_pack(source):
            pack = open_pack(source)
            is_usable = pack.preprocessing == wanted or (encoder.is_backbone and not pack.folder.is_dir())
            if not is_usable and not encoder.is_backbone and self.model is not None:
                self.model.check_preprocessing(
                    pack.preprocessing, source, f"Give the folder it was made of: {pack.folder}"
                )
            if not len(pack):
                raise ImageFolderError(f"The pack {source} has no image that can be used.")
            if is_usable:
                return pack
            source = pack.folder
        ray = self.cluster.address if self.cluster else None
        return pack_folder(source, out, wanted, limits=self.limits, ray=ray, progress=self.packing_progress)

    def encoding(
        self, encoder: ImageEncoder, old: Reduction | None, pack: Pack, rows: NDArray[np.int64]
    ) -> tuple[ImageEncoder, Reduction | None, Iterator[Floats]]:
        """Return the encoder to use, its reduction, and the codes (B, D) of rows (N,) of a pack, in order.

        Args:
            encoder: without a reduction.
            old: the reduction to use; None fits one to the first rows, if the encoder needs one.
            pack: the images.
            rows: what to encode; the first `MOST_FITTED` are a random sample.

        Raises:
            ConfigError: codes in bf16 would have other neighbours than those in fp32.
        """
        # An update without a model keeps what was compared when the index was made.
        if encoder.kind == BF16_CODES and self.model is not None and len(rows) >= _LEAST_COMPARED:
            self._check_bf16(encoder, pack, rows[:_COMPARED])
        if not encoder.is_backbone or old is not None:
            chosen = encoder if old is None else encoder.reduced(old)
            return chosen, old, self.encode(chosen, pack, rows)
        sample = np.concatenate(list(self.encode(encoder, pack, rows[:MOST_FITTED])))
        reduction = fit_reduction(sample)
        chosen = encoder.reduced(reduction)
        rest = self.encode(chosen, pack, rows[MOST_FITTED:], done=len(sample))
        return chosen, reduction, itertools.chain([reduction(sample)], rest)

    def _check_bf16(self, encoder: ImageEncoder, pack: Pack, rows: NDArray[np.int64]) -> None:
        exact = np.concatenate(list(self.encode(find_encoder("code", self.model), pack, rows)))
        space = fit_vector_space(exact, self.distance_for(encoder, None))
        found = np.concatenate(list(self.encode(encoder, pack, rows)))
        agreement = same_neighbours(space, exact, found)
        if agreement < _AGREEMENT:
            raise ConfigError(
                f"In bf16 the codes of this model keep {agreement:.1%} of the {_NEIGHBOURS} nearest of "
                f"{len(rows):,} images, less than {_AGREEMENT:.0%}. Use --embedding code."
            )

    def encode(
        self, encoder: ImageEncoder, pack: Pack, rows: NDArray[np.int64], done: int = 0
    ) -> Iterator[Floats]:
        """Yield the codes (B, D) of rows (N,) of a pack, in their order, after `done` others.

        Raises:
            ImageIndexError: the encoder gave codes that are not finite.
        """

        def codes_of(images: Tensor) -> Columns:
            return {"codes": encoder.encode(images)}

        total = done + len(rows)
        for columns in map_pack(codes_of, pack, rows, INFERENCE_BATCH, self.cluster):
            codes = columns["codes"]
            # FAISS and LanceDB would take such codes, and find nothing or anything with them.
            if not np.isfinite(codes).all():
                raise ImageIndexError("The model gives codes that are not finite; they cannot be compared.")
            yield codes
            done += len(codes)
            if self.progress:
                self.progress(done, total)


def same_neighbours(space: VectorSpace, exact: Floats, found: Floats) -> float:
    """Return the share of the nearest of each code that other codes of the same images keep, in [0, 1].

    Args:
        space: how codes are compared.
        exact, found: (N, D) of the same images, in the same order.
    """
    count = min(_NEIGHBOURS, len(exact) - 1)
    if count < 1:
        return 1.0
    nearest = []
    for codes in (exact, found):
        vectors = space.vectors(codes)
        scores = np.stack([space.scores(one, vectors) for one in vectors])
        scores = scores if space.is_similarity else -scores
        np.fill_diagonal(scores, -np.inf)
        nearest.append(np.argpartition(-scores, count - 1, axis=1)[:, :count])
    kept = [len(np.intersect1d(one, other)) for one, other in zip(*nearest, strict=True)]
    return float(np.mean(kept)) / count
