"""Packs in a store that speaks S3, a server of its own: what works, and what is wrong in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoencode import Pack, StorageError, open_pack, pack_folder, train
from autoencode.data import manifest

pytestmark = pytest.mark.scale


def test_pack_and_train_against_s3(
    bucket: str,
    photos: Path,
    tiny_pack: Pack,
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(manifest, "_SHARD_BYTES", 12 * 32 * 32 * 3)
    pack_folder(photos, bucket, tiny_pack.preprocessing, workers=1)
    monkeypatch.setenv("AUTOENCODE_CACHE_GB", str(3 * 12 * 32 * 32 * 3 / 1e9))
    pack = open_pack(bucket)
    assert pack.fingerprint == tiny_pack.fingerprint
    assert np.array_equal(pack.pixels(pack.rows()), tiny_pack.pixels(tiny_pack.rows()))
    run = train(bucket, tmp_path / "run", epochs=1, **tiny)
    assert len(run.metrics) == 1


def test_a_bucket_that_is_not_there_is_one_line(bucket: str, photos: Path) -> None:
    for used in (open_pack, lambda place: pack_folder(photos, place)):
        with pytest.raises(StorageError, match=r"s3://nosuch/photos.pack.*bucket does not exist") as found:
            used("s3://nosuch/photos.pack")
        assert "\n" not in str(found.value)


def test_missing_credentials_are_one_line(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match=r"No credentials for s3://images/photos\.pack\. Log in"):
        open_pack(bucket)


def test_a_server_that_does_not_answer_is_one_line(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match=r"Could not reach s3://images/photos\.pack"):
        open_pack(bucket)
