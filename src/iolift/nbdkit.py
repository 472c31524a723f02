"""The plugin for nbdkit's Python: ``nbdkit python $(iolift nbd-plugin) file=disk.img``.

nbdkit runs this file as its `__main__`, in an interpreter of its own that knows nothing of the
environment iolift is installed in. So:

1. The environment is found from this file's place; the interpreters must be of the same version.
2. The parameters are tried out before nbdkit becomes a daemon, where an error is still seen; the
   disk itself is opened after it has forked.
3. Here is only what nbdkit asks for. What it means is in _nbd.py, and help for docs/nbdkit.md.

Who may call: nbdkit, from many threads at once.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import nbdkit
except ImportError:
    raise ImportError(
        "iolift.nbdkit is a script for nbdkit (Debian: nbdkit nbdkit-plugin-python): "
        "nbdkit python $(iolift nbd-plugin) file=PATH"
    ) from None

if TYPE_CHECKING:
    from collections.abc import Iterable


def _find_environment() -> None:
    """Make iolift and numpy importable, or end with one line that says why they aren't."""
    package = Path(__file__).resolve().parent
    here = "{}.{}".format(*sys.version_info)
    ending = sysconfig.get_config_var("EXT_SUFFIX")
    if not (package / f"_filecore{ending}").exists():
        names = " ".join(path.name for path in package.glob("_filecore.*"))
        tags = re.findall(r"cpython-3(\d+)", names)
        built = " and ".join(f"3.{minor}" for minor in sorted(tags, key=int)) or "none"
        sys.exit(
            f"iolift: nbdkit runs Python {here}, but the iolift in {package} is built for Python "
            f"{built}: install it with Python {here} ({ending})"
        )
    folders = [package.parent]
    if "VIRTUAL_ENV" in os.environ:  # where numpy is, if iolift is installed as editable
        folders.append(Path(os.environ["VIRTUAL_ENV"], "lib", f"python{here}", "site-packages"))
    # Behind the standard library, before what the distribution has installed.
    place = next((i for i, p in enumerate(sys.path) if p.endswith("-packages")), len(sys.path))
    sys.path[place:place] = [str(folder) for folder in folders if str(folder) not in sys.path]
    try:
        import numpy  # noqa: F401
    except ImportError as error:
        sys.exit(
            f"iolift: nbdkit's Python {here} can't import numpy: {error}. Looked in {folders[0]} "
            f"and sys.path: activate iolift's virtual environment, or set PYTHONPATH"
        )


_find_environment()

from itertools import islice  # noqa: E402

import iolift  # noqa: E402
from iolift._nbd import Connection, Disk, open_disk, parse_setting  # noqa: E402
from iolift._nbd_threads import keep, kept, let_go, preempt_nobody  # noqa: E402

API_VERSION = 2
MAX_EXTENTS = 1024  # told in one answer: the client asks again for what follows

_settings: dict[str, Any] = {}
_disk: Disk

# Of a user's mistake, until the parameters have been tried out, the last line says it all.
sys.tracebacklimit = 0


def dump_plugin() -> None:
    """For nbdkit --dump-plugin."""
    import numpy

    print(f"iolift_version={iolift.__version__}")
    print(f"iolift_path={Path(iolift.__file__).parent}")
    print(f"numpy_version={numpy.__version__}", flush=True)


def thread_model() -> int:
    """All at once: iolift lets go of the GIL for as long as an I/O takes."""
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def config(key: str, value: str) -> None:
    """One key=value of the command line."""
    _settings[key] = parse_setting(key, value)


def config_complete() -> None:
    """After the last one."""
    if "file" not in _settings:
        raise ValueError("file=PATH is missing")


def get_ready() -> None:
    """The last chance for an error that somebody sees."""
    try:
        open_disk(_settings).close()
    except (OSError, TypeError, ValueError) as error:
        raise error from None
    del sys.tracebacklimit


def after_fork() -> None:
    """Only now: threads and rings do not come along into a child."""
    global _disk
    preempt_nobody()
    _disk = open_disk(_settings)


def cleanup() -> None:
    """After the last connection."""
    _disk.close()


# ------------------------------------------------------------------------------------- connections


def open(readonly: bool) -> Connection:
    """A client."""
    return Connection()


def close(connection: Connection) -> None:
    """It has left, and its threads have ended."""
    let_go(connection.threads)


def get_size(connection: Connection) -> int:
    """Bytes; what the file had when it was opened."""
    return _disk.size


def block_size(connection: Connection) -> tuple[int, int, int]:
    """(minimum, preferred, maximum), bytes."""
    return _disk.block_size


def can_write(connection: Connection) -> bool:
    """Not with readonly=true."""
    return _disk.writable


def can_multi_conn(connection: Connection) -> bool:
    """Yes: all connections have the same disk."""
    return True


def can_flush(connection: Connection) -> bool:
    """Yes."""
    return True


def can_fua(connection: Connection) -> int:
    """Yes, without nbdkit's help."""
    return int(nbdkit.FUA_NATIVE)


def can_trim(connection: Connection) -> bool:
    """Not with a journal."""
    return _disk.can_trim


def can_zero(connection: Connection) -> bool:
    """Not with a journal: nbdkit writes zeros then."""
    return _disk.can_trim


def can_fast_zero(connection: Connection) -> bool:
    """Yes: what can't be fast is refused at once."""
    return True


def can_extents(connection: Connection) -> bool:
    """Where the file system knows."""
    return _disk.can_extents


# ---------------------------------------------------------------------------------------- requests


def _refuse(error: OSError) -> OSError:
    """To be raised: nbdkit gets its errno."""
    nbdkit.set_error(error.errno or 0)
    return error


def pread(connection: Connection, buffer: memoryview, offset: int, flags: int) -> None:
    """Fill the buffer, nbdkit's own."""
    try:
        kept.here  # noqa: B018
    except AttributeError:
        keep(connection.threads)
    try:
        got = _disk.read_into(buffer, offset)
        if got != len(buffer):
            raise _disk.short(got, len(buffer), offset)
    except OSError as error:
        raise _refuse(error) from None


def pwrite(connection: Connection, buffer: memoryview, offset: int, flags: int) -> None:
    """Write the buffer."""
    try:
        kept.here  # noqa: B018
    except AttributeError:
        keep(connection.threads)
    try:
        _disk.write(buffer, offset, bool(flags & nbdkit.FLAG_FUA))
    except OSError as error:
        raise _refuse(error) from None


def flush(connection: Connection, flags: int) -> None:
    """Wait until what was answered is durable."""
    try:
        _disk.flush(connection)
    except OSError as error:
        raise _refuse(error) from None


def trim(connection: Connection, count: int, offset: int, flags: int) -> None:
    """Let go of the room."""
    try:
        _disk.trim(count, offset, bool(flags & nbdkit.FLAG_FUA))
    except OSError as error:
        raise _refuse(error) from None


def zero(connection: Connection, count: int, offset: int, flags: int) -> None:
    """Make zeros; nbdkit writes them where that is refused, unless it must be fast."""
    may_trim, fua = bool(flags & nbdkit.FLAG_MAY_TRIM), bool(flags & nbdkit.FLAG_FUA)
    try:
        _disk.zero(count, offset, may_trim=may_trim, fua=fua)
    except OSError as error:
        raise _refuse(error) from None


def extents(
    connection: Connection, count: int, offset: int, flags: int
) -> Iterable[tuple[int, int, int]]:
    """Data and holes."""
    most = 1 if flags & nbdkit.FLAG_REQ_ONE else MAX_EXTENTS
    try:
        return list(islice(_disk.extents(count, offset), most))
    except OSError as error:
        raise _refuse(error) from None
