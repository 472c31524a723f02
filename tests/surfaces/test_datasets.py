"""Goal: the dataset of docs/ gives what was written, in every process, and its text runs.

Where the tests are not beside docs/, as in an installed copy, there is nothing here.
"""

from __future__ import annotations

import multiprocessing
import pickle
import random
import re
import threading
from pathlib import Path
from typing import Any

import pytest

import iolift

REPOSITORY = Path(__file__).parents[2]
TEXT = REPOSITORY / "docs" / "datasets.md"

if not TEXT.exists():
    pytest.skip("no docs/ here", allow_module_level=True)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs"))


def make(path: Path, sizes: list[int], **options: Any) -> tuple[Any, list[bytes]]:
    from record_dataset import RecordDataset, write_records  # type: ignore[import-not-found]

    records = [random.Random(i).randbytes(size) for i, size in enumerate(sizes)]
    assert write_records(path, records) == len(records)
    return RecordDataset(path, **options), records


SIZES = [random.Random(1).choice([0, 1, 100, 4096, 9000]) for _ in range(300)]


@pytest.fixture(params=["uring", "posix"])
def dataset(request: Any, tmp_path: Path) -> tuple[Any, list[bytes]]:
    if request.param == "uring":
        request.getfixturevalue("needs_uring")
    return make(tmp_path / "records", SIZES, backend=request.param)


@pytest.fixture
def needs_uring() -> None:
    from conftest import unavailable

    if reason := unavailable("uring"):
        pytest.skip(reason)


def test_records_in_the_order_asked(dataset: tuple[Any, list[bytes]]) -> None:
    data, records = dataset
    assert len(data) == len(records)
    chance = random.Random(2)
    for n in (0, 1, 5, 1000):
        indices = [chance.randrange(-len(records), len(records)) for _ in range(n)]
        got = data.__getitems__(indices)
        assert [bytes(record) for record in got] == [records[i] for i in indices]
    assert bytes(data[7]) == records[7]
    assert bytes(data[-1]) == records[-1]
    assert [bytes(record) for record in data] == records  # until IndexError, as sequences do


def test_a_record_that_is_not_there(dataset: tuple[Any, list[bytes]]) -> None:
    data, records = dataset
    for index in (len(records), -len(records) - 1):
        with pytest.raises(IndexError, match=f"record {index} of 300"):
            data.__getitems__([0, index])


def test_an_empty_dataset(tmp_path: Path) -> None:
    data, _ = make(tmp_path / "none", [])
    assert len(data) == 0
    assert data.__getitems__([]) == []
    assert list(data) == []


def test_decode_and_read_only_views(tmp_path: Path) -> None:
    data, records = make(tmp_path / "a", [10, 20], decode=lambda record: record.tobytes()[:3])
    assert data.__getitems__([1, 0]) == [records[1][:3], records[0][:3]]
    data.decode = None
    with pytest.raises(ValueError, match="read-only"):
        data[0][0] = 1


def test_one_batch_of_io(tmp_path: Path) -> None:
    data, _ = make(tmp_path / "a", [4096] * 1000)
    data[0]
    coalescer = data._file().coalescer
    before = coalescer.stats()
    data.__getitems__([i // 2 for i in range(200)])
    after = coalescer.stats()
    assert after.batches - before.batches == 1
    assert after.extents - before.extents == 1


def read_in_process(data: Any) -> list[bytes]:
    """In a worker."""
    return [bytes(record) for record in data.__getitems__(range(0, 300, 7))]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers(tmp_path: Path, method: str) -> None:
    data, records = make(tmp_path / "a", SIZES)
    assert read_in_process(data) == records[::7]
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        assert pool.map_async(read_in_process, [data] * 4).get(100) == [records[::7]] * 4
    assert read_in_process(pickle.loads(pickle.dumps(data))) == records[::7]
    assert read_in_process(data) == records[::7]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_dataset_that_is_forked_with_its_file_open(tmp_path: Path) -> None:
    # As torch's workers are: the dataset is not pickled.
    data, records = make(tmp_path / "a", SIZES)
    expected = read_in_process(data)
    context = multiprocessing.get_context("fork")
    end, other = context.Pipe()
    worker = context.Process(target=lambda: other.send(read_in_process(data)))
    worker.start()
    assert end.poll(100)
    assert end.recv() == expected == records[::7]
    worker.join()
    assert worker.exitcode == 0
    end.close()
    other.close()


def test_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that all find the file not open yet."""
    data, records = make(tmp_path / "a", SIZES)
    together, opened, real = threading.Barrier(5), [], iolift.open

    def open_at_once(*arguments: Any, **options: Any) -> Any:
        together.wait()
        opened.append(real(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(iolift, "open", open_at_once)
    found: list[list[bytes]] = []
    threads = [
        threading.Thread(target=lambda: found.append(read_in_process(data))) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [records[::7]] * 5
    assert [file.closed for file in opened].count(False) == 1


def test_the_text_runs(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", TEXT.read_text(), re.M | re.S)
    assert blocks
    for block in blocks:
        names = {"__name__": "__main__"}
        exec(compile(block, TEXT.name, "exec"), names)
        names["data"].close()  # the lambda in it has `names`: a cycle, collected in any order
