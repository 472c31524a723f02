"""Goal: workers of a cluster read one sharded zarr through LiftStore and through lift://, each with
a coalescer of its own, and get what numpy wrote.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

zarr = pytest.importorskip("zarr", minversion="3.1")
dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")
xarray = pytest.importorskip("xarray")
ours = pytest.importorskip("iolift.zarr")
fsspec = pytest.importorskip("fsspec")

# A cluster's own: they come from threads of its event loop, which ends with it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Port .* is already in use"),
]

SHAPE, SHARDS, CHUNKS = (256, 256), (128, 128), (16, 16)
VALUES = np.random.default_rng(3).integers(0, 1 << 30, SHAPE, np.int32)


@pytest.fixture(scope="module")
def client() -> Any:
    options = {"n_workers": 2, "threads_per_worker": 2, "processes": True}
    with (
        distributed.LocalCluster(**options, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A dataset of one sharded array with its dimensions named, as xarray reads it."""
    root = tmp_path_factory.mktemp("sharded") / "data.zarr"
    group = zarr.create_group(ours.LiftStore(root))
    array = group.create_array(
        "t", shape=SHAPE, shards=SHARDS, chunks=CHUNKS, dtype="i4", dimension_names=("y", "x")
    )
    array[:] = VALUES
    return root


def opened(root: Any, how: str) -> Any:
    if how == "store":
        return ours.LiftStore(root)
    if "lift" not in fsspec.available_protocols():
        pytest.skip("iolift is not installed, so fsspec does not know it")
    return zarr.storage.FsspecStore.from_url(f"lift://{root}", read_only=True)


@pytest.mark.parametrize("how", ["store", "url"])
def test_dask_arrays(client: Any, root: Any, how: str) -> None:
    store = opened(root, how)
    lazy = da.from_zarr(zarr.open_array(store, path="t", mode="r"), chunks=(64, 64))
    assert (client.compute(lazy, sync=True) == VALUES).all()
    assert client.compute(lazy[3::17, 5::9].sum(), sync=True) == VALUES[3::17, 5::9].sum()


@pytest.mark.parametrize("how", ["store", "url"])
def test_xarray(client: Any, root: Any, how: str) -> None:
    with xarray.open_zarr(opened(root, how), consolidated=False, chunks={"x": 64}) as data:
        found = client.compute(data["t"], sync=True)
        assert (found.values == VALUES).all()
        assert int(client.compute(data["t"].isel(y=7).sum(), sync=True)) == VALUES[7].sum()


def test_each_worker_has_its_own_coalescer(client: Any, root: Any) -> None:
    store = ours.LiftStore(root)
    array = zarr.open_array(store, path="t", mode="r")
    here = store.coalescer.stats().requests

    def read(k: int) -> tuple[int, int]:
        assert (array[k] == VALUES[k]).all()
        return os.getpid(), array.store_path.store.coalescer.stats().requests

    names = list(client.scheduler_info()["workers"])
    found = [client.submit(read, k, workers=[names[k % 2]], pure=False).result() for k in range(6)]
    assert len({pid for pid, _ in found}) == 2
    assert os.getpid() not in {pid for pid, _ in found}
    assert all(requests > 0 for _, requests in found)
    assert store.coalescer.stats().requests == here  # nothing of it was read in this process
