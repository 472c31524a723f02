"""Goal: what is shipped is whole: source, wheel, stubs, .pxd files, documentation.

The distributions are built in a copy of the repository, offline. The installed modules are the
builder's starting point: what is up to date is not compiled a second time.
"""

from __future__ import annotations

import doctest
import importlib.util
import inspect
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import child
import pytest

import iolift

REPOSITORY = Path(__file__).parent.parent
PACKAGE = Path(iolift.__file__).parent
NOT_COPIED = shutil.ignore_patterns(
    ".git",
    ".venv*",
    ".*_cache",
    ".hypothesis",
    ".benchmarks",
    "__pycache__",
    "*.egg-info",
    "htmlcov",
    "build",
    "dist",
    "traces",
)

missing = [name for name in ("setuptools", "Cython") if importlib.util.find_spec(name) is None]
needs_builder = pytest.mark.skipif(
    bool(missing) or not (REPOSITORY / "setup.py").exists(),
    reason=f"the build backend is not here: {missing or 'no source tree'}",
)


def run(*command: Any, cwd: Path) -> None:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=child.environment(
            PIP_NO_INDEX="1",
            PIP_DISABLE_PIP_VERSION_CHECK="1",
            CFLAGS="-O0",
        )
        | {"IOLIFT_BUILD": "quick"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("packaging") / "copy"
    shutil.copytree(REPOSITORY, copy, ignore=NOT_COPIED)
    for module in (copy / "src/iolift").glob("*.so"):
        module.unlink()  # a wheel must not need them
    built = copy / f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}/iolift"
    built.mkdir(parents=True)
    for module in PACKAGE.glob("*.so"):
        shutil.copy2(module, built)  # with its time of change
    return copy


# --------------------------------------------------------------------------------- distributions


@pytest.fixture(scope="module")
def sdist(source: Path) -> set[str]:
    """The names that the source distribution holds."""
    code = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    run(sys.executable, "-c", code, cwd=source)
    (archive,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as held:
        return {name.partition("/")[2] for name in held.getnames()}


@pytest.fixture(scope="module")
def wheel(source: Path) -> dict[str, bytes]:
    """The files that the wheel holds."""
    pytest.importorskip("pip")
    run(
        *(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index"),
        *("-w", "wheel", "."),
        cwd=source,
    )
    (archive,) = (source / "wheel").glob("*.whl")
    with zipfile.ZipFile(archive) as held:
        return {name: held.read(name) for name in held.namelist()}


@needs_builder
def test_the_source_distribution_is_whole(source: Path, sdist: set[str]) -> None:
    files = [
        *(source / "ext/iolift").glob("*.p*x*"),
        *(source / "ext/iolift").glob("*.h"),
        *(source / "tests").glob("*.py"),
        *(source / "src/iolift").glob("*.py*"),
        *(source / "src/iolift/data").glob("*.*"),
        *(source / "docs").glob("*.md"),
    ]
    wanted = {str(path.relative_to(source)) for path in files}
    wanted |= {"README.md", "LICENSE", "pyproject.toml", "setup.py"}
    assert wanted - sdist == set()
    generated = [name for name in sdist if name.endswith((".so", ".pyc"))]
    assert not generated + [n for n in sdist if n.startswith("ext/") and n.endswith(".c")]


@needs_builder
def test_the_wheel_is_whole(source: Path, wheel: dict[str, bytes]) -> None:
    wanted = {f"iolift/{path.name}" for path in (source / "ext/iolift").glob("*.pxd")}
    wanted |= {f"iolift/{path.name}" for path in (source / "src/iolift").glob("*.py*")}
    wanted |= {f"iolift/data/{path.name}" for path in (source / "src/iolift/data").glob("*.gz")}
    wanted |= {"iolift/_system.h", "iolift/py.typed", "iolift/_coalescer.pyi", "iolift/_plan.pyi"}
    assert wanted - wheel.keys() == set()
    for module in (source / "ext/iolift").glob("*.pyx"):
        built = [name for name in wheel if name.startswith(f"iolift/{module.stem}.")]
        assert any(name.endswith((".so", ".pyd")) for name in built), module
    assert not [name for name in wheel if name.endswith((".c", ".pyx", ".pyc"))]


@needs_builder
def test_the_wheel_says_what_it_needs(wheel: dict[str, bytes]) -> None:
    about = {name.rpartition("/")[2]: text for name, text in wheel.items() if "dist-info" in name}
    needs = re.findall(r"^Requires-Dist: (.*)$", about["METADATA"].decode(), re.M)
    assert [line for line in needs if "extra ==" not in line] == ["numpy>=1.26"]
    assert b"iolift.cli:main" in about["entry_points.txt"]


# ---------------------------------------------------------------------------------- public surface


def test_all_is_what_is_public() -> None:
    modules = {module.name for module in pkgutil.iter_modules(iolift.__path__)}
    public = {name for name in vars(iolift) if not name.startswith("_")} - modules
    assert {*iolift.__all__} == public | {"__version__"}
    assert sorted(iolift.__all__) == list(iolift.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", iolift.__version__)


def test_a_version_of_one_source() -> None:
    metadata = pytest.importorskip("importlib.metadata")
    assert metadata.version("iolift") == iolift.__version__


def undocumented(owner: Any, name: str) -> list[str]:
    missing = [] if inspect.getdoc(owner) else [name]
    if isinstance(owner, type):
        for member, value in vars(owner).items():
            described = callable(value) or inspect.isdatadescriptor(value)
            if member.startswith("_") or not described or isinstance(value, type):
                continue
            if inspect.ismemberdescriptor(value) or inspect.isgetsetdescriptor(value):
                continue  # attributes: in the class's own text
            missing += undocumented(value, f"{name}.{member}")
    return missing


def test_every_public_object_has_a_docstring() -> None:
    assert inspect.getdoc(iolift)
    missing = []
    for name in iolift.__all__:
        if name != "__version__":
            missing += undocumented(getattr(iolift, name), name)
    assert missing == []


def test_the_examples_in_docstrings_run() -> None:
    from iolift import _file

    for module in (iolift, _file):
        tried = doctest.testmod(module)
        assert tried.attempted
        assert not tried.failed


def test_import_pulls_in_nothing_but_numpy() -> None:
    said = child.run("""
        import sys
        import numpy
        before = set(sys.modules)
        import iolift
        new = {name.partition(".")[0] for name in set(sys.modules) - before}
        ours = {name for name in new if "iolift" in name or "cython" in name.lower()}
        print(*sorted(new - ours - set(sys.stdlib_module_names)))
        print(*sorted({"asyncio", "concurrent", "multiprocessing", "ctypes", "argparse",
                       "logging", "subprocess", "socket"} & new))
    """)
    assert said.split() == []


def test_no_traces_of_this_machine() -> None:
    here = [os.path.expanduser("~"), str(REPOSITORY)]
    for path in PACKAGE.glob("*.py*"):
        text = path.read_text()
        assert not [place for place in here if len(place) > 5 and place in text], path
