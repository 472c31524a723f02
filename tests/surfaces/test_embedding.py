"""Goal: the module of docs/embedding.md compiles as it stands, and plans as iolift.plan does."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import iolift

pytest.importorskip("Cython")
pytest.importorskip("setuptools")

REPOSITORY = Path(__file__).parents[2]
PACKAGE = Path(iolift.__file__).parent
BLOCKS = re.findall(
    r"^```(cython|py)\n(.*?)^```", (REPOSITORY / "docs/embedding.md").read_text(), re.M | re.S
)


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = tmp_path_factory.mktemp("embedding")
    (source,) = (text for kind, text in BLOCKS if kind == "cython")
    (place / "nearby.pyx").write_text(source)
    (place / "setup.py").write_text(BLOCKS[1][1])
    # Installed, embed.pxd lies beside the modules; in place, it is where it is written.
    beside = (PACKAGE / "embed.pxd").exists()
    paths = [PACKAGE.parent] if beside else [REPOSITORY / "ext", PACKAGE.parent]
    path = os.pathsep.join(str(p) for p in paths)
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=place,
        env=os.environ | {"PYTHONPATH": path, "CFLAGS": "-O0 -g0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    sys.path.insert(0, str(place))
    try:
        return importlib.import_module("nearby")
    finally:
        sys.path.remove(str(place))


def test_the_example_runs(module: Any) -> None:
    exec(compile(BLOCKS[2][1], "docs/embedding.md", "exec"), {})


@pytest.mark.parametrize("order", ["elevator", "fifo"])
@pytest.mark.parametrize("n", [0, 1, 2, 70, 9000])
def test_it_plans_as_iolift_plan_does(module: Any, n: int, order: str) -> None:
    chance = np.random.default_rng(n)
    for start in (0, 1, 1 << 19, 1 << 40):
        offsets = chance.integers(0, 1 << 20, n)
        lengths = chance.integers(0, 6000, n)
        options = {"gap": 20, "max_io": 4096, "start": start, "order": order}
        ours = iolift.plan(offsets, lengths, **options)
        extents, first, count = module.nearby(offsets, lengths, **options)
        ends = ours.offsets + ours.lengths
        assert extents == list(zip(ours.offsets.tolist(), ends.tolist(), strict=True))
        carried = lengths > 0
        assert count == ours.count.tolist()
        assert np.array_equal(np.array(first)[carried], ours.first[carried])


TOP = 2**63 - 1


@pytest.mark.parametrize(
    ("offset", "length", "options"),
    [
        (-1, 1, {}),
        (0, -1, {}),
        (TOP, 1, {}),
        (1, TOP, {}),
        (0, 1, {"gap": -1}),
        (0, 1, {"max_io": 0}),
        (0, 1, {"start": -1}),
    ],
)
def test_what_is_wrong_is_refused(
    module: Any, offset: int, length: int, options: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match="bad option" if options else "bad range"):
        module.nearby(np.array([0, offset]), np.array([1, length]), **options)


def test_the_last_byte_that_a_file_can_have(module: Any) -> None:
    extents, _, _ = module.nearby(np.array([TOP - 1]), np.array([1]))
    assert extents == [(TOP - 1, TOP)]
