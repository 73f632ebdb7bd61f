"""Shares of a batch are all of it, each image once, in order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autoencode import Pack
from autoencode.data.corruptions import corrupt, mirror, parse_corruptions
from autoencode.data.loader import batches, share_of, shared_batches


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("whole", [1, 2, 6, 7, 128])
def test_shares_are_the_batch_and_differ_by_one_image(whole: int, count: int) -> None:
    shares = [share_of(whole, rank, count) for rank in range(count)]
    counted = [share for share in shares if share.counted]
    assert [i for share in counted for i in range(share.first, share.end)] == list(range(whole))
    assert sum(share.weight for share in shares) == pytest.approx(1)
    sizes = [share.counted for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert all(share.end > share.first for share in shares), "every process must have something to compute"


@pytest.mark.parametrize("count", [1, 3, 200])
@pytest.mark.parametrize("whole", [1, 7, 128])
def test_the_pieces_of_a_share_are_all_of_it(whole: int, count: int) -> None:
    for share in (share_of(whole, rank, 2) for rank in range(2)):
        pieces = share.pieces(count)
        assert sum(piece.weight for piece in pieces) == pytest.approx(share.weight)
        assert [i for p in pieces for i in range(p.first, p.end)] == list(range(share.first, share.end))
        assert len(pieces) == max(1, min(count, share.counted))
        sizes = {piece.counted for piece in pieces}
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("count", [2, 3])
def test_processes_see_together_what_one_sees(count: int, tiny_pack: Pack) -> None:
    rows = tiny_pack.rows()
    assert len(rows) % 10
    parts = [list(shared_batches(tiny_pack, rows, 10, rank, count)) for rank in range(count)]
    for step, batch in enumerate(batches(tiny_pack, rows, 10)):
        seen = [images for images, share in (part[step] for part in parts) if share.counted]
        assert torch.equal(torch.cat(seen), batch)


def test_an_image_meets_the_same_chance_in_a_share_as_in_the_batch(tiny_pack: Pack) -> None:
    images = next(batches(tiny_pack, tiny_pack.rows(), 7))
    chain = parse_corruptions(["gaussian:0.3", "dropout:0.2", "rotate:20"])

    def damaged(part: slice, **share: object) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        mirrored = mirror(images[part], generator, *share.values())  # type: ignore[arg-type]
        return corrupt(mirrored, chain, generator, training=True, **share)  # type: ignore[arg-type]

    shares = [share_of(7, rank, 3) for rank in range(3)]
    parts = [damaged(share.part, share=share) for share in shares]
    np.testing.assert_allclose(torch.cat(parts), damaged(slice(None)), atol=1e-6)
