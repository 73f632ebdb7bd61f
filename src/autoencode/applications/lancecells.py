"""The groups in which LanceDB looks for neighbours: made, kept up, and searched as widely as is needed.

Shapes: S vectors of a sample, N rows, D values in a vector.
"""

from __future__ import annotations

import math

import faiss
import numpy as np
from numpy.typing import NDArray

from autoencode.applications.lancerows import Cells
from autoencode.applications.lancetables import Tables
from autoencode.applications.nearest import (
    EXACT_LIMIT,
    RECALL_NEIGHBOURS,
    Floats,
    fewest_probes,
    prepare_faiss,
)

_NEW_SHARE = 0.1  # of images outside the cells, which are compared one by one
_MORE_CELLS = 2  # cells are made anew when so many times as many are wanted
_BLOCK_ROWS = 65_536
# Each of the sample costs a query for each step, and each query journeys to the store.
_RECALL_SAMPLE, _FIRST_PROBES = 100, 8
_NEAREST = RECALL_NEIGHBOURS + 1


def keep_fast(tables: Tables, exact_limit: int = EXACT_LIMIT) -> None:
    """Group the vectors into cells where they are too many to compare each, or put what is new into them.

    The cells that a query looks into are as many as find nearly all of the true nearest, as measured for a
    sample, with which every vector is compared in one pass.
    """
    count = tables.count()
    if count <= exact_limit:
        tables.tidy()
        return
    cells, wanted = tables.cells().cells, round(math.sqrt(count))
    if not cells or wanted > _MORE_CELLS * cells:
        cells = wanted
        tables.make_cells(cells)
    elif count - tables.indexed() > _NEW_SHARE * count:
        tables.extend_cells()
    else:
        return
    sample = tables.sample(min(_RECALL_SAMPLE, count))
    limits = _farthest(tables, sample)

    def recall_with(probes: int) -> float:
        found = [tables.nearest(vector, _NEAREST, None, probes)[1] for vector in sample]
        near = [_squares(vector, vectors) for vector, vectors in zip(sample, found, strict=True)]
        hits = [min(_NEAREST, int((one <= limit).sum())) for one, limit in zip(near, limits, strict=True)]
        return (sum(hits) / len(hits) - 1) / RECALL_NEIGHBOURS  # each finds itself, which is no neighbour

    tables.set_cells(Cells(cells, *fewest_probes(recall_with, cells, _FIRST_PROBES)))


def _farthest(tables: Tables, sample: Floats) -> NDArray[np.float64]:
    """Return the squared distance (S,) within which the nearest of each vector of a sample (S, D) lie."""
    prepare_faiss()
    best = np.full((len(sample), _NEAREST), np.inf)
    for block in tables.blocks(_BLOCK_ROWS):
        _, rows = faiss.knn(sample, block, min(_NEAREST, len(block)), metric=faiss.METRIC_L2)
        both = np.concatenate([best, _squares(sample[:, None], block[rows])], axis=1)
        best = np.sort(both, axis=1)[:, :_NEAREST]
    return np.asarray(best[:, -1])


def _squares(one: Floats, other: Floats) -> NDArray[np.float64]:
    return np.asarray(np.square(one.astype(np.float64) - other).sum(-1))
