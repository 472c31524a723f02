"""Builds the Cython core in ext/iolift and ships its .pxd files beside the modules.

Environment, for developers (a change needs --force or a clean tree, see CONTRIBUTING.md):
IOLIFT_BUILD=quick      compiled in half the time, and slower
IOLIFT_BUILD=sanitize   AddressSanitizer and UndefinedBehaviorSanitizer
IOLIFT_BUILD=fuzz       both by clang, and counters that guide a fuzzer
IOLIFT_BUILD=coverage   lines counted by gcc, for coverage of the core
"""

import os
import shutil
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_py import build_py

EXT = Path("ext/iolift")
HEADERS = sorted(str(path) for path in [*EXT.glob("*.pxd"), *EXT.glob("*.h")])
BUILD = os.environ.get("IOLIFT_BUILD", "release")

directives = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "auto_pickle": False,
    "embedsignature": True,
    "embedsignature.format": "python",
}
compile_args = ["-O3", "-fno-strict-aliasing"]
link_args: list[str] = []
macros: list[tuple[str, str | None]] = []
if BUILD == "quick":
    compile_args[0] = "-O1"
elif BUILD == "sanitize":
    compile_args = ["-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]
    link_args = ["-fsanitize=address,undefined"]
elif BUILD == "fuzz":
    # -fno-wrapv: Python's own flags say that integers wrap, and then no overflow is reported.
    os.environ["CC"] = "clang"
    link_args = ["-fsanitize=address,undefined,fuzzer-no-link"]
    compile_args = ["-O1", "-g1", "-fno-omit-frame-pointer", "-fno-strict-aliasing", "-fno-wrapv"]
    compile_args += [*link_args, "-fno-sanitize-recover=undefined"]
elif BUILD == "coverage":
    # Cython's tracing only marks the lines that count. It is not compiled: it would take the GIL
    # at each line, also below the mutex that a thread with the GIL waits for.
    directives["linetrace"] = True
    macros = [("CYTHON_PROFILE", "0"), ("CYTHON_TRACE", "0")]
    compile_args = ["-O0", "--coverage", "-fprofile-update=atomic"]
    link_args = ["--coverage"]
elif BUILD != "release":
    sys.exit(f"IOLIFT_BUILD must be release, quick, sanitize, fuzz or coverage, not {BUILD!r}")

extensions = [
    Extension(
        f"iolift.{path.stem}",
        [str(path)],
        depends=[str(path), *HEADERS],
        include_dirs=[str(EXT)],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        define_macros=macros,
        libraries=["pthread"] if sys.platform.startswith("linux") else [],
    )
    for path in sorted(EXT.glob("*.pyx"))
]


class BuildPyWithPxd(build_py):
    """Copies the .pxd files beside the built modules, so that others can `cimport iolift`."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for header in HEADERS:
                target = Path(self.build_lib, "iolift", Path(header).name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(header, target)


setup(
    ext_modules=cythonize(
        extensions,
        include_path=["ext"],
        compiler_directives=directives,
        emit_linenums=BUILD == "coverage",
    ),
    cmdclass={"build_py": BuildPyWithPxd},
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
)
