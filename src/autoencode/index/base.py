"""An index of images and what it finds, whichever store keeps it.

Shapes: Q queries, D code dimensions. Images are (Q, 3, H, W) in [0, 1], codes (Q, D).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoencode.configuration import Split
from autoencode.data.preprocessing import Limits, read_chunks
from autoencode.data.sources import expanded
from autoencode.embedding import BF16_CODES, PRETRAINED_KINDS
from autoencode.errors import ConfigError, check_choice
from autoencode.models.autoencoder import INFERENCE_BATCH
from autoencode.models.backbones import BACKBONE
from autoencode.pixels import to_float

if TYPE_CHECKING:
    from autoencode.data.entries import Entry
    from autoencode.data.pack import Progress
    from autoencode.data.preprocessing import Preprocessing
    from autoencode.embedding import ImageEncoder
    from autoencode.index.interface import IndexSettings
    from autoencode.index.neighbours import Floats

_FAR_PERCENTILE = 1.0
_LABELS_SHOWN = 10

Images = str | Path | Iterable[str | Path] | Tensor | NDArray[Any]


@dataclass(frozen=True)
class Neighbour:
    """One image of the index that is near a query.

    Attributes:
        path: the file, as it was when the index was made.
        score: a similarity in [-1, 1] for the distances "whitened" and "cosine", where higher is nearer; a
            distance from 0 for "l2", where lower is nearer.
        label: the first sub-folder; None for an image in none.
        position: where the image is in `FileIndex.entries`; None in an index that is not held in memory.
        percentile: in (0, 100]: the percentage of the indexed images whose own nearest neighbour is no nearer
            than this one, or, with pretrained features, that is as far beyond the folder as the query, if
            those are fewer; None in an index that is not held in memory, or of one image.
    """

    path: Path
    score: float
    label: str | None
    position: int | None
    percentile: float | None = None

    @property
    def is_gone(self) -> bool:
        """Whether the file is no longer there."""
        return not self.path.is_file()

    def score_text(self, between: str, digits: int = 4) -> str:
        """Return the score, and if known its percentile after `between`."""
        rank = "" if self.percentile is None else f"{between}{self.percentile:.1f}%"
        return f"{self.score:.{digits}f}{rank}"


@dataclass(frozen=True)
class Neighbours:
    """The neighbours of one query.

    Attributes:
        query: the file; None where images or codes were given.
        found: the neighbours, nearest first.
    """

    query: Path | None
    found: tuple[Neighbour, ...]

    @property
    def nothing_close(self) -> bool:
        """Whether at most 1 % of the indexed images are as far from their nearest, or from the folder's mean.

        See `Neighbour.percentile`. An image of the same kind as the indexed ones has nothing close in 1 % of
        cases by each measure. False where this is not known: with fewer than 99 images.
        """
        percentile = self.found[0].percentile if self.found else None
        return percentile is not None and percentile <= _FAR_PERCENTILE


@dataclass(frozen=True)
class SearchResults:
    """The results of `Index.search`.

    Attributes:
        results: one for each query that could be used, in the order given.
        skipped: the other queries, with the reason.
        preprocessing: how files become the pictures of a sheet; None where images or codes were given.
    """

    results: list[Neighbours]
    skipped: list[tuple[Path, str]]
    preprocessing: Preprocessing | None = field(default=None, repr=False)

    def _repr_png_(self) -> bytes | None:
        if self.preprocessing is None or not self.results:
            return None
        # They load Matplotlib, which a search without a sheet is spared.
        from autoencode.figures import png
        from autoencode.index.sheet import neighbours_sheet

        return png(neighbours_sheet(self.results, self.preprocessing))


@dataclass(frozen=True)
class Update:
    """What `build_index` changed.

    Attributes:
        encoded: distinct contents that were encoded.
        kept: distinct contents whose codes were there already.
        removed: distinct contents that are no longer in the folder.
        seconds: time spent encoding.
        skipped: files that cannot be used, with the reason.
    """

    encoded: int
    kept: int
    removed: int
    seconds: float
    skipped: list[Entry]


@dataclass(frozen=True)
class ImageFilter:
    """A condition on the images of an index; None matches every label, or every split.

    Attributes:
        label: the first sub-folder.
        split: see `split_of`.
    """

    label: str | None = None
    split: Split | None = None

    def __post_init__(self) -> None:
        """Reject a split that does not exist.

        Raises:
            ConfigError: the split is unknown.
        """
        if self.split is not None:
            check_choice("split", self.split, get_args(Split))

    def __str__(self) -> str:
        conditions = {"label": self.label, "split": self.split}
        return " and ".join(f"the {name} {text!r}" for name, text in conditions.items() if text is not None)


EVERY_IMAGE = ImageFilter()


class Index(ABC):
    """An open index. Updates by other processes do not change it.

    Attributes:
        path: the folder of the index, or its URL.
        embedding: the kind of its codes, see `ImageEncoder.kind`.
        distance: how codes are compared.
        vector_space: the same, with what was fitted to the codes.
        preprocessing: how files become the images that are encoded.
        recall: share of the true ten nearest neighbours that are found, measured when the index was built; 1
            where a query is compared with every code.
        update: what `build_index` changed; None for an index that was only opened.
        sources: the folders, packs and tables it is of.
        unfinished: folders with images not yet in the index, as an update is running or was killed.
        update_command: the command that updates the index.
    """

    path: Path | str
    recall: float
    sources: tuple[str, ...]
    unfinished: tuple[str, ...] = ()
    update_command: str

    def __init__(
        self,
        settings: IndexSettings,
        size: int,
        encoder: ImageEncoder | None = None,
        update: Update | None = None,
    ) -> None:
        """Open an index of codes of `size` dimensions; see `open_index`."""
        self.update = update
        self.embedding, self.preprocessing = settings.embedding, settings.preprocessing
        self.vector_space, self.distance = settings.vector_space, settings.vector_space.distance
        self._settings, self._size, self._encoder = settings, size, encoder

    def __len__(self) -> int:
        """Number of indexed images."""
        return self.count()

    @property
    @abstractmethod
    def is_exact(self) -> bool:
        """Whether a query is compared with every code."""

    @property
    def encoder_name(self) -> str:
        """The name, for people, of what the images are compared by."""
        if self.embedding in PRETRAINED_KINDS:
            return f"compared by {BACKBONE.name} at {self.preprocessing.height} pixels"
        names = {"code": "codes of a model", BF16_CODES: "codes of a model in bf16"}
        if self.embedding in names:
            return f"compared by {names[self.embedding]}"
        name = f"compared by {Path(self.embedding).stem}"
        name += f" at {self.preprocessing.width}x{self.preprocessing.height} pixels"
        reduction = self._settings.reduction
        return name if reduction is None else f"{name}, {len(reduction.mean):,} dimensions"

    @property
    def encoder(self) -> ImageEncoder:
        """The encoder that made the codes.

        Raises:
            ModelFileError: the model file is missing, or holds another model.
            ImageIndexError: the pretrained features installed are of another version.
            MissingExtraError: the weights of the pretrained network are not installed.
        """
        # Looked for at its first use, as a search with codes needs no model.
        if self._encoder is None:
            self._encoder = self._settings.fitted(self._settings.find_encoder(self.path))
        return self._encoder

    def use(self, encoder: ImageEncoder) -> None:
        """Encode queries with this encoder, instead of looking for the model where it was.

        Raises:
            ImageIndexError: the codes were made with another encoder.
        """
        advice = "Index the folder with this model, into another output."
        self._settings.check_encoder(self.path, encoder, advice)
        self._encoder = self._settings.fitted(encoder)

    def count(self, label: str | None = None, split: Split | None = None) -> int:
        """Return the number of images, of a label, of a split, or of both.

        Raises:
            ConfigError: the split is unknown.
        """
        return self._count(ImageFilter(label, split))

    def search(
        self,
        queries: Images,
        k: int = 10,
        *,
        label: str | None = None,
        split: Split | None = None,
        limits: Limits | None = None,
        progress: Progress | None = None,
    ) -> SearchResults:
        """Find the images nearest to each query; an indexed file is not its own neighbour.

        Args:
            queries: image files and folders of them, or whatever `listed` takes; floats are images
                (Q, 3, H, W) in [0, 1] if they have four dimensions, and codes (Q, D) if they have two.
            k: neighbours of each query; where there are fewer images, all of them.
            label: search only images in this first sub-folder.
            split: search only images of this split, such as "test".
            limits: the largest files and pictures to accept.
            progress: called with (queries done, queries in all), for files.

        Raises:
            ConfigError: k is below 1, the arrays are neither images nor codes, or no image has that label or
                split.
            ImageFolderError: a folder is missing or has no image, or no file could be used.
            ModelFileError: queries have to be encoded, and the model file is missing or holds another model.
        """
        if k < 1:
            raise ConfigError(f"The number of neighbours is {k}; it must be at least 1.")
        only = ImageFilter(label, split)
        # A misspelt label would otherwise look like a search that finds nothing.
        if only != EVERY_IMAGE and not self._count(only):
            raise ConfigError(f"No image of {self.path} has {only}.{self._labels_like(label)}")
        if isinstance(queries, Tensor | np.ndarray) and queries.ndim != 3:
            ready = torch.as_tensor(queries)
            if ready.is_floating_point():
                found = self._search_codes(self._codes_of(ready), k, only)
                return SearchResults([Neighbours(None, tuple(near)) for near in found], [])
        return self._search_files(queries, k, only, limits, progress)

    def _labels_like(self, label: str | None) -> str:
        """Return a sentence that lists the labels nearest to one that no image has; "" if it has images."""
        labels = self._labels()
        if label is None or label in labels or not labels:
            return ""
        # The first of all labels where none is spelt alike.
        shown = get_close_matches(label, labels, n=_LABELS_SHOWN) or labels[:_LABELS_SHOWN]
        more = len(labels) - len(shown)
        return f" Its labels: {', '.join(shown)}{f', and {more:,} more' * (more > 0)}."

    def _search_files(
        self,
        queries: str | Path | Iterable[str | Path],
        k: int,
        only: ImageFilter,
        limits: Limits | None,
        progress: Progress | None,
    ) -> SearchResults:
        paths = expanded(queries)
        results: list[Neighbours] = []
        skipped = list(paths.skipped)
        chunks = read_chunks(paths, INFERENCE_BATCH, self.preprocessing, limits or Limits(), skipped)
        for number, (usable, pixels) in enumerate(chunks, 1):
            codes = self.encoder.encode(to_float(pixels))
            # One more than asked for, as the query itself may be among them.
            nearest = self._search_codes(codes, k + 1, only)
            for path, code, found in zip(usable, codes, nearest, strict=True):
                results.append(Neighbours(path, self._others(path, code, found, k, only)))
            if progress:
                progress(min(number * INFERENCE_BATCH, len(paths)), len(paths))
        return SearchResults(results, skipped, self.preprocessing)

    def _others(
        self, query: Path, code: Floats, found: list[Neighbour], k: int, only: ImageFilter
    ) -> tuple[Neighbour, ...]:
        """Return the K nearest of `found`, or of more of them, that are not the file of the query."""
        own, asked = query.resolve(), k + 1
        while True:
            # The same file may be indexed by several paths, each a link, and be given by yet another.
            others = [near for near in found if near.path.resolve() != own]
            if len(others) >= k or len(found) < asked:
                return tuple(others[:k])
            asked *= 2
            [found] = self._search_codes(code[None], asked, only)

    def _codes_of(self, queries: Tensor) -> Floats:
        if queries.ndim == 4:
            return self.encoder.encode(queries)
        # Checked here, as FAISS would read past the end of codes that are too short.
        codes = queries.to(torch.float32).cpu().numpy()
        if codes.ndim != 2 or codes.shape[1] != self._size or not np.isfinite(codes).all():
            raise ConfigError(
                f"Queries must be images (Q, 3, H, W) or finite codes (Q, {self._size}); not {codes.shape}."
            )
        return codes

    def _needs_memory(self, purpose: str) -> ConfigError:
        return ConfigError(
            f"{purpose} needs an index that is held in memory, and {self.path} is not. "
            "Make another: autoencode index FOLDER --store file --out OTHER"
        )

    @abstractmethod
    def files(self, like: Path) -> Iterator[Path]:
        """Yield the indexed files, or at least those that have the same name as `like`."""

    @abstractmethod
    def _count(self, only: ImageFilter) -> int:
        """Return the number of images that match."""

    def _labels(self) -> list[str]:
        """Return the labels there are, in order; none where finding them takes a pass over all images."""
        return []

    @abstractmethod
    def _search_codes(self, codes: Floats, k: int, only: ImageFilter) -> list[list[Neighbour]]:
        """Return the K nearest images of each code (Q, D), or all; files of the same bytes share a score."""
