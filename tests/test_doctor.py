"""Goal: the doctor tells facts, measures what it says, and leaves everything as it was."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

import iolift
from iolift import _doctor
from iolift.cli import main


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """A smaller file, for less time."""
    monkeypatch.setattr(_doctor, "SIZE", 16 << 20)
    monkeypatch.setattr(_doctor, "SECONDS", 0.2)


def run(capsys, *arguments):
    assert main(["doctor", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_json(capsys, tmp_path):
    found = json.loads(run(capsys, tmp_path, "--json"))
    with iolift.Coalescer() as coalescer:
        assert found["backend"] == coalescer.backend
        assert found["backend_reason"] == coalescer.backend_reason
        assert found["auto_depth"] == coalescer.depth
    assert found["iolift"] == iolift.__version__
    assert found["path"] == str(tmp_path)
    for cost in found["alone"], found["together"]:
        assert cost["io_us"] > 0
        assert cost["byte_ns"] > 0
        assert cost["gap"] == pytest.approx(cost["io_us"] * 1000 / cost["byte_ns"], rel=0.01)
    rates = {int(depth): rate for depth, rate in found["reads_per_s"].items()}
    assert tuple(rates) == _doctor.DEPTHS[: len(rates)]  # a slow device is not asked for all
    assert min(rates.values()) > 0
    assert rates[found["depth"]] >= 0.9 * max(rates.values())
    assert all(rate < 0.9 * max(rates.values()) for d, rate in rates.items() if d < found["depth"])


def test_words(capsys, tmp_path):
    text = run(capsys, tmp_path)
    with iolift.Coalescer() as coalescer:
        assert coalescer.backend_reason in text
    for name in "kernel", "O_DIRECT", "device", "alone", "together", "gap", "depth":
        assert f"\n{name} " in text
    assert max(map(len, text.splitlines())) < 160


def test_the_reason_of_a_fallback_is_told(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("IOLIFT_BACKEND", "posix")
    assert "posix (asked for by $IOLIFT_BACKEND)" in run(capsys, tmp_path)


def test_a_directory_is_left_as_it_was(capsys, tmp_path):
    run(capsys, tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_file_is_only_read(capsys, tmp_path):
    path = tmp_path / "data"
    data = np.random.default_rng(0).bytes(_doctor.LEAST)
    path.write_bytes(data)
    path.chmod(0o400)
    before = path.stat()
    run(capsys, path)
    after = path.stat()
    assert path.read_bytes() == data
    assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)


def test_without_direct_io_the_reason_is_told(capsys, tmp_path, monkeypatch):
    true_open = iolift.Coalescer.open

    def refuse(self, path, mode="r", *, direct=False, **options):
        if direct:
            raise OSError(22, "Invalid argument", path)
        return true_open(self, path, mode, **options)

    class Refusing(iolift.Coalescer):
        open = refuse

    monkeypatch.setattr(_doctor, "Coalescer", Refusing)
    found = json.loads(run(capsys, tmp_path, "--json"))
    assert found["direct_reason"] == "Invalid argument"
    assert found["measured"] in ("buffered, cold", "in memory", "through the page cache")


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1])
def test_a_file_that_is_too_small_is_refused(capsys, tmp_path, size):
    path = tmp_path / "small"
    path.write_bytes(bytes(size))
    assert main(["doctor", str(path)]) == 2
    assert f"{path} has {size} bytes" in capsys.readouterr().err


def test_what_is_not_there_is_named(capsys, tmp_path):
    assert main(["doctor", str(tmp_path / "nothing")]) == 2
    assert f"{tmp_path / 'nothing'}: No such file" in capsys.readouterr().err


def test_the_file_goes_also_when_it_is_interrupted(tmp_path, monkeypatch):
    def interrupt(*_):
        assert len(os.listdir(tmp_path)) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(_doctor, "_measure_costs", interrupt)
    assert main(["doctor", str(tmp_path)]) == 130
    assert os.listdir(tmp_path) == []


def test_device_of_what_has_none():
    assert _doctor.device_of("/proc/self/status") == ("none", None, "")
