"""Goal: libraries that take a file object read and write through iolift.File what they do through
a builtin one.

Each round trip is done twice, over io.FileIO and over File (buffered and direct, bare or under a
BufferedReader and BufferedWriter): what is written must be the same bytes, what is read the same
values.
"""

from __future__ import annotations

import gzip
import io
import mmap
import tarfile
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import iolift

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROWS = np.random.default_rng(0).integers(0, 1000, (3000, 7))
CHUNKS = [bytes([k]) * (k * 37 % 5000) for k in range(200)]


@pytest.fixture(params=["bare", "layered", "direct"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Path, str], Any]:
    """(path, mode) -> the file object over iolift."""

    def make(path: Path, mode: str) -> Any:
        raw = iolift.open(path, mode, direct=request.param == "direct")
        if request.param != "layered":
            return raw
        layer: Any = io.BufferedReader if mode == "r" else io.BufferedWriter
        return (io.BufferedRandom if "+" in mode else layer)(raw)

    try:
        make(tmp_path / "probe", "w").close()
    except OSError as error:
        pytest.skip(f"no direct I/O here: {error}")
    return make


@pytest.fixture
def direct(opener: Any, tmp_path: Path) -> bool:
    with opener(tmp_path / "probe", "w") as f:
        return bool(getattr(f, "direct", False))


def round_trip(
    opener: Any, tmp_path: Path, write: Any, read: Any, *, mode: str = "w", same: bool = True
) -> None:
    """`same`: the written bytes are, too; not where they have a time or an id in them."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    with opener(ours, mode) as f:
        write(f)
    with io.FileIO(theirs, mode) as f:
        write(f)
    if same:
        assert ours.read_bytes() == theirs.read_bytes()
    with opener(theirs, "r") as f, io.FileIO(theirs, "r") as twin:
        assert read(f) == read(twin)
    with io.FileIO(ours, "r") as f, opener(ours, "r") as twin:
        assert read(f) == read(twin)


# ------------------------------------------------------------------------------------------- numpy


def test_numpy_save(opener: Any, tmp_path: Path) -> None:
    def write(f: Any) -> None:
        np.save(f, ROWS)
        np.save(f, ROWS.astype(np.float32).T)

    round_trip(opener, tmp_path, write, lambda f: [np.load(f).tolist() for _ in range(2)])


def test_numpy_savez(opener: Any, tmp_path: Path) -> None:
    def read(f: Any) -> Any:
        with np.load(f) as found:
            return {name: found[name].tolist() for name in found}

    round_trip(opener, tmp_path, lambda f: np.savez(f, a=ROWS, b=ROWS[::2]), read, same=False)


def test_numpy_tofile_and_fromfile(opener: Any, tmp_path: Path, direct: bool) -> None:
    """By way of a descriptor: it must see what was written before, and where the position is."""

    def write(f: Any) -> None:
        f.write(b"a header")
        ROWS.tofile(f)
        f.write(b"a trailer")
        assert f.tell() == 17 + ROWS.nbytes

    def read(f: Any) -> Any:
        f.seek(8)
        found = np.fromfile(f, ROWS.dtype, ROWS.size)
        return found.tolist(), f.tell(), f.read()

    if direct:
        pytest.skip("numpy's own I/O is not aligned")
    round_trip(opener, tmp_path, write, read)


def test_numpy_memmap(opener: Any, tmp_path: Path) -> None:
    def write(f: Any) -> None:
        f.write(b"x" * (ROWS.nbytes - 3))
        if isinstance(f, io.BufferedIOBase):
            f.flush()  # a mapping sees what is in the file
        mapped = np.memmap(f, ROWS.dtype, "r+", shape=ROWS.shape)
        mapped[::2] = ROWS[::2]
        mapped.flush()

    def read(f: Any) -> Any:
        with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return np.memmap(f, ROWS.dtype, "r", shape=ROWS.shape).tolist(), mapped[:]

    round_trip(opener, tmp_path, write, read, mode="w+")


# ---------------------------------------------------------------------------- the standard library


def test_zipfile(opener: Any, tmp_path: Path) -> None:
    def write(f: Any) -> None:
        with zipfile.ZipFile(f, "w", zipfile.ZIP_DEFLATED) as archive:
            for number, chunk in enumerate(CHUNKS):
                archive.writestr(zipfile.ZipInfo(f"{number}.bin"), chunk)

    def read(f: Any) -> Any:
        with zipfile.ZipFile(f) as archive:
            assert archive.testzip() is None
            return {name: archive.read(name) for name in reversed(archive.namelist())}

    round_trip(opener, tmp_path, write, read)


def test_tarfile(opener: Any, tmp_path: Path) -> None:
    def write(f: Any) -> None:
        with tarfile.open(fileobj=f, mode="w") as archive:
            for number, chunk in enumerate(CHUNKS):
                member = tarfile.TarInfo(f"{number}.bin")
                member.size = len(chunk)
                archive.addfile(member, io.BytesIO(chunk))

    def read(f: Any) -> Any:
        with tarfile.open(fileobj=f) as archive:
            return {m.name: archive.extractfile(m).read() for m in reversed(archive.getmembers())}  # type: ignore[union-attr]

    round_trip(opener, tmp_path, write, read)


def test_gzip(opener: Any, tmp_path: Path) -> None:
    def write(f: Any) -> None:
        with gzip.GzipFile("", "wb", fileobj=f, mtime=0) as z:
            z.writelines(CHUNKS)

    def read(f: Any) -> Any:
        with gzip.GzipFile(fileobj=f) as z:
            z.seek(100_000)
            return z.read()

    round_trip(opener, tmp_path, write, read)


# ----------------------------------------------------------------------------------- h5py, pyarrow


def test_h5py(opener: Any, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")

    def write(f: Any) -> None:
        with h5py.File(f, "w") as h:
            h.create_dataset("rows", data=ROWS, chunks=(100, 7), compression="gzip")
            h.create_group("g").attrs["name"] = "value"
            h["rows"][50:60] = 7
            del h["g"].attrs["name"]

    def read(f: Any) -> Any:
        with h5py.File(f, "r") as h:
            return h["rows"][20:2000:3].tolist(), sorted(h)

    round_trip(opener, tmp_path, write, read, mode="w+", same=False)


def test_parquet(opener: Any, tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({f"c{k}": ROWS[:, k] for k in range(7)})

    def read(f: Any) -> Any:
        found = pq.ParquetFile(f)
        return [found.read_row_group(k, ["c1", "c5"]).to_pydict() for k in (2, 0)]

    round_trip(opener, tmp_path, lambda f: pq.write_table(table, f, row_group_size=1000), read)


def test_arrow_ipc(opener: Any, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.table({f"c{k}": ROWS[:, k] for k in range(7)})

    def write(f: Any) -> None:
        with pa.ipc.new_file(f, table.schema) as writer:
            writer.write_table(table, max_chunksize=500)

    def read(f: Any) -> Any:
        found = pa.ipc.open_file(pa.PythonFile(f, mode="r"))
        return [found.get_batch(k).to_pydict() for k in (3, 1)]

    round_trip(opener, tmp_path, write, read)


def test_pandas_csv(opener: Any, tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(ROWS[:300])
    round_trip(
        opener,
        tmp_path,
        lambda f: frame.to_csv(f, index=False, mode="wb"),
        lambda f: pd.read_csv(f).to_dict(),
    )
