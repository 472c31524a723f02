"""Goal: what the documentation shows runs, and what it points to is there.

The pages are README.md and docs/*.md. How a page is written so that it is tested:

1. Every block fenced as ```python runs: as a doctest if it has ">>>" in it, else as a program that
   must not raise. The blocks of a page run in order, in one process of the page's own, in one empty
   directory, with one namespace, as if a reader had typed them one after the other. Warnings are
   errors.
2. A block that needs more than iolift says so in a comment before its fence, with module names as
   they are imported, or programs: <!-- needs: zarr, program:nbdkit -->. Else it is left out.
   What it imports may lie beside the pages.
3. A block that is not to be run is not fenced as python, but as `py`.
4. A link that is no URL names a file beside the page, and perhaps a heading in it, by the anchor
   that GitHub makes of it. Every page of docs/ is linked from docs/README.md.
5. A test is named as `tests/test_window.py::test_flush_ends_it`, a measurement by its row in README
   as `[row: one thread, ...](../README.md#measured)`, and exists.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import child
import pytest

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
PAGES = [page for page in [REPOSITORY / "README.md", *sorted(DOCS.glob("*.md"))] if page.exists()]
LINKED = [
    *PAGES,
    *filter(Path.exists, (REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "bench/README.md")),
]

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the documentation is not here")

HANG_S = 90  # not an expectation: a page that takes this long hangs

FENCE = re.compile(
    r"(?:^<!-- needs: (?P<needs>.*?) -->\n\s*)?^```python\n(?P<code>.*?)^```$", re.M | re.S
)
RUNNER = """
import doctest, json, sys
names = {"__name__": "__main__"}
page = sys.argv[1]
for line, code in json.load(sys.stdin):
    if ">>>" in code:
        test = doctest.DocTestParser().get_doctest(code, names, page, page, line)
        runner = doctest.DocTestRunner()
        if runner.run(test, clear_globs=False).failed:
            sys.exit(1)
        names.update(test.globs)
    else:
        exec(compile("\\n" * line + code, page, "exec"), names)
"""


class Block(NamedTuple):
    """line: how many are before its first one."""

    line: int
    code: str
    needs: tuple[str, ...]

    def missing(self) -> list[str]:
        return [need for need in self.needs if not is_here(need)]


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def is_here(need: str) -> bool:
    kind, _, name = need.rpartition(":")
    if kind == "program":
        return shutil.which(name) is not None
    assert not kind, f"{need!r} is neither a module nor program:NAME"
    return importlib.util.find_spec(name.partition(".")[0]) is not None


def blocks_of(text: str) -> list[Block]:
    found = []
    for match in FENCE.finditer(text):
        needs = (match["needs"] or "").replace(",", " ").split()
        found.append(Block(text.count("\n", 0, match.start("code")), match["code"], tuple(needs)))
    return found


def run(page: str, blocks: list[Block], directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", RUNNER, page],
        input=json.dumps([(block.line, block.code) for block in blocks]),
        cwd=directory,
        env=child.environment(PYTHONPATH=str(DOCS)),
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_S,
    )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_examples_run(page: Path, tmp_path: Path) -> None:
    blocks = blocks_of(page.read_text())
    assert len(blocks) == page.read_text().count("```python\n"), "a fence is not understood"
    able = [block for block in blocks if not block.missing()]
    done = run(page.name, able, tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    if left_out := sorted({need for block in blocks for need in block.missing()}):
        pytest.skip(f"{len(able)} of {len(blocks)} blocks ran, as {', '.join(left_out)} is missing")


# --------------------------------------------------------------------------- what pages point to


def prose(text: str) -> str:
    """Without code: fenced blocks and what stands between backquotes."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    seen: dict[str, int] = {}
    found = set()
    for heading in re.findall(
        r"^#+ +(.*?) *$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M
    ):
        heading = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        count = seen[slug] = seen.get(slug, -1) + 1
        found.add(f"{slug}-{count}" if count else slug)
    return found


def links(text: str) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", prose(text))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def broken(page: Path) -> list[str]:
    wrong = []
    for link in links(page.read_text()):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_every_page_is_in_the_index() -> None:
    listed = {link.partition("#")[0] for link in links((DOCS / "README.md").read_text())}
    assert {page.name for page in DOCS.glob("*.md")} - {"README.md"} - listed == set()


TEST_NAME = re.compile(r"\btests/(\w+(?:/\w+)*\.py)(?:::(\w+))?")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_tests_that_are_named_exist(page: Path) -> None:
    for module, name in TEST_NAME.findall(page.read_text()):
        path = REPOSITORY / "tests" / module
        assert path.exists(), module
        tree = ast.parse(path.read_text())
        here = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not name or name in here, f"{module}::{name}"


def test_every_guarantee_names_its_tests() -> None:
    text = (DOCS / "guarantees.md").read_text()
    numbered = re.findall(r"^## (\d+)\. .*?$(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert [number for number, _ in numbered] == [str(k) for k in range(1, len(numbered) + 1)]
    assert len(numbered) == len(re.findall(r"^\d+\. \*\*", guarantees_of_readme(), re.M))
    for number, section in numbered:
        assert any(name for _, name in TEST_NAME.findall(section)), number


def guarantees_of_readme() -> str:
    return (
        (REPOSITORY / "README.md").read_text().partition("## Guarantees")[2].partition("\n## ")[0]
    )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_measurements_that_are_named_exist(page: Path) -> None:
    rows = (REPOSITORY / "README.md").read_text()
    for name in re.findall(r"\[row: ([^]]*)\]", page.read_text()):
        assert f"\n| {' '.join(name.split())} |" in rows, name


def test_every_module_of_the_core_has_its_place() -> None:
    table = (DOCS / "architecture.md").read_text().partition("## Which file has what")[2]
    listed = re.findall(r"`(_\w+)`", table)
    sources = {path.stem for path in (REPOSITORY / "ext/iolift").glob("_*.p*x*")}
    sources |= {path.stem for path in (REPOSITORY / "ext/iolift").glob("_*.h")}
    sources -= {"__init__"}
    assert sorted(listed) == sorted(sources)


# ----------------------------------------------------------------------------------- these tests


PAGE = """
# A page

```python
x = 1
```

<!-- needs: surely_missing, program:sh -->

```python
import surely_missing
```

```python
>>> x + 1
%s
```
"""


def test_a_page_is_taken_apart() -> None:
    one, two, three = blocks_of(PAGE % 2)
    assert (one.line, one.code, one.missing()) == (4, "x = 1\n", [])
    assert two.missing() == ["surely_missing"]
    assert three.needs == ()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("\nraise KeyError('no')\n", 'File "page.md", line 9'),
        (">>> 1 + 1\n3\n", "Got:\n    2"),
        ("import warnings\nwarnings.warn('careful')\n", "UserWarning: careful"),
    ],
)
def test_an_example_that_is_wrong_is_seen(code: str, said: str, tmp_path: Path) -> None:
    done = run("page.md", [Block(7, code, ())], tmp_path)
    assert done.returncode
    assert said in done.stdout + done.stderr


def test_a_namespace_for_a_page(tmp_path: Path) -> None:
    able = [block for block in blocks_of(PAGE % 2) if not block.missing()]
    assert run("page.md", able, tmp_path).returncode == 0
    able = [block for block in blocks_of(PAGE % 3) if not block.missing()]
    assert run("page.md", able, tmp_path).returncode == 1


def test_links_that_lead_nowhere_are_seen(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A `b` & c\n\n## Twice\n\n## Twice\n\n```\n# none\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[1](a.md) [2](a.md#a-b--c) [3](a.md#twice-1) [4](https://example.org/x)\n"
        "`[5](nowhere)` [6](b.md) [7](a.md#none) [8](#here) [9](#there)\n\n# Here\n"
    )
    assert broken(page) == ["b.md", "a.md#none", "#there"]
