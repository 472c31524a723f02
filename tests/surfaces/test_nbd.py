"""Goal: what NBD clients that others wrote do to a disk, the plugin for nbdkit does right.

fio checks what it wrote, qemu-img and nbdcopy copy and compare, nbdsh sends single requests, mkfs
and the kernel make a file system and use it. What no client can see - that a flush is a sync, who
waits for whom - is asked of the disk behind the plugin, on a simulated one.

Clients talk over Unix sockets that are there before nbdkit is, so nobody waits for it to start.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from errno import EIO, ENOSPC, EOPNOTSUPP
from pathlib import Path
from typing import TYPE_CHECKING, Any

import child
import numpy as np
import pytest
from child import environment
from faulty import FaultyDisk
from gated import GatedDisk

import iolift
from iolift import _nbd
from iolift._nbd import Connection, open_disk, parse_setting
from iolift.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator

HANG_S = 60  # not an expectation: a program that takes this long hangs
MIB = 1 << 20
ROUNDS = 40
SCRIPT = Path(iolift.__file__).with_name("nbdkit.py")


def missing() -> str:
    """Why nbdkit can't run the plugin here; empty when it can."""
    if os.environ.get("IOLIFT_SANITIZED"):
        return "nbdkit and its clients are not made for a sanitizer"
    if shutil.which("nbdkit") is None:
        return "no nbdkit"
    about = subprocess.run(
        ["nbdkit", "python", "--dump-plugin"], capture_output=True, text=True, check=False
    )
    found = re.search(r"^python_version=(\d+\.\d+)", about.stdout, re.MULTILINE)
    if found is None:
        return "no nbdkit-plugin-python"
    ours = "{}.{}".format(*sys.version_info)
    return "" if found[1] == ours else f"nbdkit's Python is {found[1]}, this one {ours}"


WHY_NOT = missing()
served = pytest.mark.skipif(WHY_NOT != "", reason=WHY_NOT)


def needs(*programs: str) -> pytest.MarkDecorator:
    lacking = [name for name in programs if shutil.which(name, path=PATH) is None]
    return pytest.mark.skipif(bool(lacking), reason=f"no {', '.join(lacking)}")


# mkfs and losetup are where an unprivileged PATH has none.
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def around(**variables: str) -> dict[str, str]:
    """The environment of nbdkit: numpy is not beside iolift where that is installed as editable."""
    path = str(Path(np.__file__).parents[1])
    return environment(**{"PATH": PATH, "PYTHONPATH": path, **variables})


def run(*command: object, status: int = 0, **variables: str) -> str:
    """What the command said, all of it."""
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HANG_S,
        env=around(**variables),
        check=False,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


class Server:
    """An nbdkit with the plugin, from start to stop."""

    def __init__(self, folder: Path, *settings: str, options: tuple[str, ...] = ()) -> None:
        path = folder / "socket"
        path.unlink(missing_ok=True)
        self.uri = f"nbd+unix:///?socket={path}"
        command = ["nbdkit", "-f", *options, "python", str(SCRIPT), *settings]
        with socket.socket(socket.AF_UNIX) as listener, (folder / "log").open("ab") as log:
            listener.bind(str(path))
            listener.listen(16)
            # As systemd passes it: descriptor 3, for the process with this number.
            shell = 'exec 3<&"$0"; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'
            self.process = subprocess.Popen(
                ["bash", "-c", shell, str(listener.fileno()), *command],
                pass_fds=[listener.fileno()],
                stderr=log,
                env=around(),
            )
        self.log = folder / "log"

    def stop(self, number: int) -> None:
        """End it, and see how it ended."""
        self.process.send_signal(number)
        try:
            ended = self.process.wait(HANG_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        assert ended == (-number if number == signal.SIGKILL else 0), self.log.read_text()

    def shell(self, code: str) -> str:
        """nbdsh, connected as `h`, runs the code; what it said."""
        # nbdsh takes the first python3, and the distribution's is the one that knows libnbd.
        return run("nbdsh", "-u", self.uri, "-c", code, PATH="/usr/bin:/bin")


@contextmanager
def serve(
    folder: Path, *settings: str, options: tuple[str, ...] = (), number: int = signal.SIGTERM
) -> Iterator[Server]:
    """A server for the block, which a signal of that number ends."""
    server = Server(folder, *settings, options=options)
    try:
        yield server
    except BaseException:
        server.process.kill()
        server.process.wait()
        raise
    server.stop(number)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """64 MiB, of which the first MiB is data and the rest a hole."""
    path = tmp_path / "disk.img"
    path.write_bytes(np.random.default_rng(0).bytes(MIB))
    os.truncate(path, 64 * MIB)
    return path


MODES = {"plain": (), "direct": ("direct=true",), "journal": ("journal={}",)}


@pytest.fixture(params=list(MODES))
def settings(request: pytest.FixtureRequest, image: Path, tmp_path: Path) -> tuple[str, ...]:
    """The parameters of a disk in each of its modes."""
    return (f"file={image}", *(text.format(tmp_path / "journal") for text in MODES[request.param]))


# ------------------------------------------------------------------------------ the way to iolift


def test_the_subcommand_names_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nbd-plugin"]) == 0
    assert capsys.readouterr().out == f"{SCRIPT}\n"


def test_outside_of_nbdkit_it_says_what_it_is() -> None:
    with pytest.raises(ImportError, match="nbdkit python"):
        import iolift.nbdkit  # noqa: F401


@served
def test_nbdkit_finds_iolift_and_numpy() -> None:
    said = run("nbdkit", "python", SCRIPT, "--dump-plugin")
    assert f"iolift_version={iolift.__version__}\n" in said
    assert f"numpy_version={np.__version__}\n" in said


@served
def test_another_version_of_python_is_an_error_that_names_both(tmp_path: Path) -> None:
    (tmp_path / "_filecore.cpython-399-x86_64-linux-gnu.so").touch()
    script = shutil.copy(SCRIPT, tmp_path)
    said = run("nbdkit", "-U", "-", "python", script, "--run", "true", status=1)
    ours = "{}.{}".format(*sys.version_info)
    assert f"nbdkit runs Python {ours}, but" in said
    assert "built for Python 3.99" in said
    assert "Traceback" not in said


@served
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (["file=/no/such/file"], "No such file or directory: '/no/such/file'"),
        (["file={}", "deptH=3"], "unknown parameter 'deptH': there are file, .*depth"),
        (["file={}", "journal=/no/such/folder"], "No such file or directory: '/no/such/folder'"),
    ],
)
def test_a_bad_parameter_is_said_in_one_line(
    parameters: list[str], message: str, image: Path
) -> None:
    words = [word.format(image) for word in parameters]
    said = run("nbdkit", "-U", "-", "python", SCRIPT, *words, "--run", "true", status=1)
    assert re.search(message, said), said
    assert len(said.strip().splitlines()) == 1, said


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "file=PATH is missing"),
        ({"depth": "three"}, "depth=three: must be a whole number"),
        ({"file": "{}", "depth": "0"}, "depth = 0 must be between 1 and 4096"),
        ({"direct": "perhaps"}, "direct=perhaps: must be true or false"),
        ({"max_waste": "much"}, "max_waste=much: could not convert"),
        ({"gap": ""}, "gap= is empty"),
        ({"file": "{}", "journal_max_bytes": "1M"}, "journal_max_bytes= needs journal="),
        ({"file": "{}", "journal": "{}.j", "readonly": "1"}, "readonly= and journal= exclude"),
    ],
)
def test_bad_parameters(parameters: dict[str, str], message: str, image: Path) -> None:
    with pytest.raises(ValueError, match=message):
        open_disk({key: parse_setting(key, v.format(image)) for key, v in parameters.items()})


def test_parameters_become_options() -> None:
    assert parse_setting("max_held_bytes", "64M") == 64 * MIB
    assert parse_setting("gap", "auto") == "auto"
    assert parse_setting("gap", "4K") == 4096
    assert parse_setting("max_waste", "0.5") == 0.5
    assert parse_setting("readonly", "No") is False
    assert parse_setting("file", "disk") == os.path.abspath("disk")


def test_the_callbacks_without_nbdkit(image: Path) -> None:
    """What nbdkit would call, in its order, with a stand-in for what it offers the script."""
    child.run(
        """
        import errno, os, sys, types
        stand_in = types.ModuleType("nbdkit")
        stand_in.THREAD_MODEL_PARALLEL, stand_in.FUA_NATIVE = 3, 2
        stand_in.FLAG_MAY_TRIM, stand_in.FLAG_FUA, stand_in.FLAG_REQ_ONE = 1, 2, 4
        said = []
        stand_in.set_error = said.append
        sys.modules["nbdkit"] = stand_in
        import iolift.nbdkit as plugin

        plugin.dump_plugin()
        assert plugin.thread_model() == 3
        try:
            plugin.config_complete()
        except ValueError as error:
            assert "file=PATH" in str(error)
        plugin.config("file", sys.argv[1])
        plugin.config_complete()
        plugin.get_ready()
        plugin.after_fork()
        assert os.sched_getscheduler(0) in (os.SCHED_BATCH, os.SCHED_OTHER)
        h = plugin.open(False)
        assert plugin.get_size(h) == 64 << 20 and plugin.block_size(h)[1] == 4096
        assert plugin.can_write(h) and plugin.can_multi_conn(h) and plugin.can_flush(h)
        assert plugin.can_fua(h) == 2 and plugin.can_fast_zero(h)
        assert plugin.can_trim(h) and plugin.can_zero(h) and plugin.can_extents(h)
        plugin.pwrite(h, memoryview(b"12345678"), 4090, 2)
        buffer = memoryview(bytearray(8))
        plugin.pread(h, buffer, 4090, 0)
        assert bytes(buffer) == b"12345678" and said == []
        plugin.zero(h, 4096, 0, 1 | 2)
        plugin.trim(h, 4096, 4096, 2)
        plugin.pread(h, buffer, 4090, 0)
        assert bytes(buffer) == bytes(8)
        assert plugin.extents(h, 64 << 20, 0, 4) == [(0, 8192, 3)]
        assert len(plugin.extents(h, 64 << 20, 0, 0)) == 3
        plugin.flush(h, 0)

        os.truncate(sys.argv[1], 100)
        descriptor = plugin._disk.file.fileno()
        os.close(descriptor)                    # everything is an error from here on
        for call in (
            lambda: plugin.pread(h, buffer, 4090, 0), lambda: plugin.pwrite(h, buffer, 0, 0),
            lambda: plugin.flush(h, 0), lambda: plugin.trim(h, 4096, 0, 0),
            lambda: plugin.zero(h, 4096, 0, 0), lambda: plugin.extents(h, 4096, 0, 0),
        ):
            said.clear()
            try:
                call()
            except OSError as error:
                assert said == [error.errno], (said, error)
            else:
                raise AssertionError("no error")
        plugin.close(h)
        os.dup2(os.open(sys.argv[1], os.O_RDWR), descriptor)
        plugin.cleanup()
        """,
        image,
    )


# ------------------------------------------------------------------------------- through nbdkit


@served
@needs("nbdinfo")
def test_what_it_can(settings: tuple[str, ...], tmp_path: Path) -> None:
    journalled = any("journal=" in text for text in settings)
    with serve(tmp_path, *settings) as server:
        export = json.loads(run("nbdinfo", "--json", server.uri))["exports"][0]
    can = {name for name, value in export.items() if value is True}
    assert can >= {"can_flush", "can_fua", "can_multi_conn", "can_zero", "can_fast_zero"}
    assert ("can_trim" in can) is not journalled
    assert export["is_read_only"] is False
    assert export["export-size"] == 64 * MIB
    assert export["block_size_preferred"] == 4096


@served
@needs("nbdinfo", "nbdsh")
def test_read_only(image: Path, tmp_path: Path) -> None:
    image.chmod(0o400)
    with serve(tmp_path, f"file={image}", "readonly=true") as server:
        assert json.loads(run("nbdinfo", "--json", server.uri))["exports"][0]["is_read_only"]
        server.shell(f"assert h.pread(4096, 0) == open({str(image)!r}, 'rb').read(4096)")


@served
@needs("fio")
def test_fio_finds_what_it_wrote(settings: tuple[str, ...], tmp_path: Path) -> None:
    if "\tnbd\n" not in run("fio", "--enghelp"):
        pytest.skip("this fio has no nbd engine")
    with serve(tmp_path, *settings) as server:
        run(
            *("fio", "--name=x", "--ioengine=nbd", f"--uri={server.uri}", "--rw=randwrite"),
            *("--bs=1k-16k", "--bs_unaligned", "--iodepth=16", "--size=64M", "--io_size=4M"),
            *(
                "--verify=crc32c",
                "--verify_fatal=1",
                "--verify_state_save=0",
                "--randseed=1",
                "--fsync=64",
            ),
        )


@served
@needs("qemu-img")
def test_qemu_img_copies_and_compares(settings: tuple[str, ...], tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(np.random.default_rng(1).bytes(5 * MIB))
    os.truncate(source, 64 * MIB)
    with serve(tmp_path, *settings) as server:
        run("qemu-img", "convert", "-n", "-O", "raw", source, server.uri)
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, server.uri)
        run("qemu-img", "convert", "-O", "raw", server.uri, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


@served
@needs("nbdcopy")
def test_nbdcopy_there_and_back(settings: tuple[str, ...], tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(np.random.default_rng(2).bytes(5 * MIB))
    os.truncate(source, 64 * MIB)
    with serve(tmp_path, *settings) as server:
        run("nbdcopy", "--flush", source, server.uri)
        run("nbdcopy", server.uri, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert (tmp_path / "disk.img").read_bytes() == source.read_bytes()


@served
@needs("nbdsh")
def test_single_requests(settings: tuple[str, ...], tmp_path: Path) -> None:
    """Ends, odd sizes, zeros between data, trims, each read back by another connection."""
    with serve(tmp_path, *settings) as server:
        server.shell(f"""
import errno
other = nbd.NBD()
other.connect_uri({server.uri!r})
size = h.get_size()
model = bytearray(other.pread(1 << 20, 0))

def written(data, offset, flags=0):
    h.pwrite(data, offset, flags)
    model[offset:offset + len(data)] = data

def check():
    assert other.pread(len(model), 0) == model

written(b"a", 0)
written(b"b" * 1023, 4097, nbd.CMD_FLAG_FUA)
written(b"c" * 300_000, 77_777)
check()
for flags in (0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FUA):
    offset = 100_001 + 5000 * flags
    h.zero(4999, offset, flags)
    model[offset:offset + 4999] = bytes(4999)
    check()
written(b"d" * 8192, 500_000)
check()
if h.can_trim():
    h.trim(65536, 524288, nbd.CMD_FLAG_FUA)
    model[524288:589824] = bytes(65536)
    check()
h.flush()
written(b"e" * 40_000_000, 0)
assert other.pread(40_000_000, 0) == b"e" * 40_000_000
h.pwrite(b"last", size - 4)
h.flush()
assert other.pread(8, size - 8) == bytes(4) + b"last"
""")
    with (tmp_path / "disk.img").open("rb") as f:
        assert f.read(40_000_001) == b"e" * 40_000_000 + b"\0"
        assert os.fstat(f.fileno()).st_size == 64 * MIB
        f.seek(-4, os.SEEK_END)
        assert f.read() == b"last"


@served
@needs("nbdsh")
def test_four_clients_at_once(settings: tuple[str, ...], tmp_path: Path) -> None:
    """Each has a quarter of the disk for itself, and 8 requests under way that don't overlap."""
    with serve(tmp_path, *settings) as server:
        server.shell(f"""
import random
chance = random.Random(1)
QUARTER, CELL, ROUNDS = 1 << 20, 1 << 17, {ROUNDS}
clients = []
for i in range(4):
    c = nbd.NBD()
    c.connect_uri({server.uri!r})
    clients.append((c, i * QUARTER, bytearray(c.pread(QUARTER, i * QUARTER))))

for n in range(ROUNDS):
    reads, sent, cookies = [], [], []
    for c, base, model in clients:
        for k in range(8):
            at = k * CELL + chance.randrange(CELL // 2)
            size = chance.choice((1, 512, 4096, chance.randrange(1, CELL // 2)))
            fua = nbd.CMD_FLAG_FUA if chance.random() < 0.1 else 0
            kind = chance.random()
            if kind < 0.4:
                buffer = nbd.Buffer(size)
                reads.append((buffer, bytes(model[at:at + size])))
                cookies.append((c, c.aio_pread(buffer, base + at)))
                continue
            data = bytes(size)
            if kind < 0.7:
                data = chance.randbytes(size)
                sent.append(nbd.Buffer.from_bytearray(bytearray(data)))
                cookies.append((c, c.aio_pwrite(sent[-1], base + at, flags=fua)))
            elif kind < 0.85 or not c.can_trim():
                hole = 0 if chance.random() < 0.5 else nbd.CMD_FLAG_NO_HOLE
                cookies.append((c, c.aio_zero(size, base + at, flags=fua | hole)))
            else:
                at, size = -(-at // 4096) * 4096, size // 4096 * 4096 or 4096
                data = bytes(size)
                cookies.append((c, c.aio_trim(size, base + at, flags=fua)))
            model[at:at + size] = data
        if chance.random() < 0.2:
            cookies.append((c, c.aio_flush()))
    for c, cookie in cookies:
        while not c.aio_command_completed(cookie):
            c.poll(-1)
    for buffer, expected in reads:
        assert buffer.to_bytearray() == expected, n
for reader, _, _ in clients:
    for _, base, model in clients:
        assert reader.pread(QUARTER, base) == model
""")


@served
@needs("nbdsh")
@pytest.mark.parametrize("threads", [1, 8])
def test_clients_come_and_go(threads: int, image: Path, tmp_path: Path) -> None:
    with serve(tmp_path, f"file={image}", options=("-t", str(threads))) as server:
        server.shell(f"""
for i in range(30):
    c = nbd.NBD()
    c.connect_uri({server.uri!r})
    for k in range(32):
        c.aio_pread(nbd.Buffer(4096), k * 4096)
    while c.aio_in_flight():
        c.poll(-1)
    c.shutdown()
""")


@served
@needs("nbdsh")
def test_a_trim_leaves_the_size_as_it_is(tmp_path: Path) -> None:
    """However it was changed behind the disk's back."""
    path = tmp_path / "disk"
    path.write_bytes(b"x" * MIB)
    disk = open_disk({"file": str(path), "backend": "posix"})
    try:
        os.truncate(path, MIB // 2)
        disk.trim(4096, 0, fua=False)
        assert path.stat().st_size == MIB // 2
        assert list(disk.extents(MIB // 2, MIB // 4))[-1] == (MIB // 2, MIB // 4, 0)
        os.truncate(path, 2 * MIB)
        disk.trim(4096, 0, fua=False)
        assert path.stat().st_size == 2 * MIB
    finally:
        disk.close()


def test_a_file_that_was_cut_is_an_error_and_not_garbage(image: Path, tmp_path: Path) -> None:
    with serve(tmp_path, f"file={image}") as server:
        server.shell(f"""
import errno, os
os.truncate({str(image)!r}, 10_000)
try:
    h.pread(4096, 8192)
    raise SystemExit("no error")
except nbd.Error as error:
    assert error.errnum == errno.EIO, error
assert len(h.pread(4096, 0)) == 4096
""")
    assert "the file ends within the disk: 1808 of 4096 bytes at offset 8192" in (
        server.log.read_text()
    )


@served
@needs("nbdsh")
@pytest.mark.parametrize("how", ["h.flush()", "h.pwrite(last, 63 << 20, nbd.CMD_FLAG_FUA)"])
def test_killed_after_a_flush_all_that_was_answered_is_there(
    how: str, image: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    settings = f"file={image}", f"journal={journal}", "write_window_ms=1000000"
    before = image.read_bytes()
    with serve(tmp_path, *settings, number=signal.SIGKILL) as server:
        server.shell(f"""
last = b"last" * 1024
for i in range(200):
    h.pwrite(i.to_bytes(4, "little") * 1024, i * 8192)
h.zero(100_000, 1_000_000)
{how}
""")
    # Nothing but the journal has it, but for the first one, which came alone and was not held.
    assert image.read_bytes()[4096:] == before[4096:]
    expected = bytearray(before)
    for i in range(200):
        expected[i * 8192 : i * 8192 + 4096] = i.to_bytes(4, "little") * 1024
    expected[1_000_000:1_100_000] = bytes(100_000)
    if "last" in how:
        expected[63 << 20 : (63 << 20) + 4096] = b"last" * 1024
    with serve(tmp_path, *settings) as again:
        again.shell(
            f"import hashlib; assert hashlib.sha1(h.pread(32 << 20, 0) + h.pread(32 << 20, 32 << 20"
            f")).hexdigest() == {sha1(bytes(expected))!r}"
        )
    assert image.read_bytes() == expected


def sha1(data: bytes) -> str:
    import hashlib

    return hashlib.sha1(data).hexdigest()


def loop_mounts() -> str:
    """Why no file system can be mounted here; empty when it can."""
    if os.geteuid() != 0:
        return "not root"
    if not os.access("/dev/fuse", os.W_OK) or not os.path.exists("/dev/loop-control"):
        return "no /dev/fuse, or no loop devices"
    return ""


@served
@needs("nbdfuse", "fusermount3", "mkfs.ext4", "mount", "umount", "fsck.ext4")
@pytest.mark.skipif(loop_mounts() != "", reason=loop_mounts())
def test_the_kernel_keeps_a_file_system_on_it(settings: tuple[str, ...], tmp_path: Path) -> None:
    fuse, root, ready = tmp_path / "fuse", tmp_path / "root", tmp_path / "ready"
    fuse.mkdir()
    root.mkdir()
    os.mkfifo(ready)
    content = np.random.default_rng(3).bytes(3 * MIB + 7)
    with serve(tmp_path, *settings) as server, ExitStack() as stack:
        fifo = os.open(ready, os.O_RDONLY | os.O_NONBLOCK)
        stack.callback(os.close, fifo)
        mounted = subprocess.Popen(
            ["nbdfuse", "-P", str(ready), str(fuse / "disk"), server.uri], env=around()
        )
        stack.callback(mounted.wait, HANG_S)
        stack.callback(run, "fusermount3", "-u", fuse)
        assert select.select([fifo], [], [], HANG_S)[0], "nbdfuse did not start"
        run("mkfs.ext4", "-q", "-F", fuse / "disk")
        with mount(fuse / "disk", root):
            for i in range(50):
                (root / f"small-{i}").write_bytes(content[i : i + 5000])
            (root / "large").write_bytes(content)
            (root / "small-7").unlink()
        with mount(fuse / "disk", root):
            assert (root / "large").read_bytes() == content
            assert not (root / "small-7").exists()
            for i in (0, 6, 8, 49):
                assert (root / f"small-{i}").read_bytes() == content[i : i + 5000]
    run("fsck.ext4", "-f", "-n", tmp_path / "disk.img")


@contextmanager
def mount(disk: Path, folder: Path) -> Iterator[None]:
    try:
        run("mount", "-o", "loop", disk, folder)
    except AssertionError as error:
        pytest.skip(f"no loop mounts here: {error}")
    try:
        yield
    finally:
        run("umount", folder)


# --------------------------------------------------------------------------------- nbdkit's threads


def test_thread_states_are_kept_until_they_are_let_go() -> None:
    """In an interpreter that has no other threads."""
    child.run("""
        import ctypes
        from iolift._nbd_threads import keep, let_go

        api, system = ctypes.pythonapi, ctypes.CDLL(None)
        api.PyInterpreterState_Get.restype = ctypes.c_void_p
        for name in ("PyInterpreterState_ThreadHead", "PyThreadState_Next"):
            function = getattr(api, name)
            function.restype, function.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

        def count():
            state, n = api.PyInterpreterState_ThreadHead(api.PyInterpreterState_Get()), 0
            while state:
                state, n = api.PyThreadState_Next(state), n + 1
            return n

        def in_c_threads(n, call):
            start = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(lambda _: call() and None)
            threads = [ctypes.c_ulong() for _ in range(n)]
            for thread in threads:
                assert system.pthread_create(ctypes.byref(thread), None, start, None) == 0
            for thread in threads:
                system.pthread_join(thread, None)

        states = []
        for _ in range(10):
            in_c_threads(8, lambda: keep(states))
            assert count() == 1 + 8
            let_go(states)
            assert count() == 1
        in_c_threads(3, lambda: keep(states))
        in_c_threads(1, lambda: (keep(states), let_go(states)))     # its own too: nbdkit -t 1
        assert count() == 1
        assert states == []
    """)


# ------------------------------------------------------------------------- the disk behind nbdkit


def kinds(disk: FaultyDisk) -> list[str]:
    return [op.kind for op in disk.log]


def opened(image: Path, **settings: Any) -> Any:
    return open_disk({"file": str(image), **settings})


def test_a_flush_and_fua_are_syncs_and_nothing_else_is(image: Path) -> None:
    device = FaultyDisk(seed=1)
    disk = opened(image, backend=device)
    disk.write(b"x", 5, False)
    assert kinds(device) == ["write"]
    disk.write(b"y", 7, True)
    assert kinds(device) == ["write", "write", "sync"]
    disk.flush(Connection())
    assert kinds(device)[3:] == ["sync"]
    disk.trim(4096, 0, True)
    disk.zero(4096, 0, may_trim=False, fua=True)
    assert kinds(device)[4:] == ["sync", "sync"]
    disk.close()
    device.check()


def test_a_failed_flush_is_for_good(image: Path) -> None:
    device = FaultyDisk(seed=1)
    disk = opened(image, backend=device)
    device.fail(EIO, kind="sync", times=1)
    disk.write(b"x", 5, False)
    before = image.read_bytes()
    with pytest.raises(OSError, match="Input/output") as first:
        disk.flush(Connection())
    assert first.value.errno == EIO
    for again in (
        lambda: disk.flush(Connection()),
        lambda: disk.write(b"x", 5, False),
        lambda: disk.trim(4096, 0, False),
        lambda: disk.zero(4096, 0, may_trim=True, fua=False),
    ):
        with pytest.raises(iolift.PoisonedError):
            again()
    assert image.read_bytes() == before
    disk.close()


def test_a_zero_outlives_the_reads_before_it(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a read that comes after it would join one of those, and get what was there before."""
    device = GatedDisk(seed=1)
    disk = opened(image, backend=device)
    device.close("read")
    ended: list[str] = []
    allocated = threading.Event()
    true_fallocate = _nbd._fallocate

    def fallocate(*arguments: Any) -> int:
        result: int = true_fallocate(*arguments)
        allocated.set()
        return result

    def read() -> None:
        disk.read_into(bytearray(4096), 8192)
        ended.append("read")

    def release() -> None:
        allocated.wait()
        device.open()

    monkeypatch.setattr(_nbd, "_fallocate", fallocate)
    threads = [threading.Thread(target=each) for each in (read, release)]
    for thread in threads:
        thread.start()
    device.arrived(1, "read")
    disk.zero(65536, 0, may_trim=True, fua=False)
    ended.append("zero")
    for thread in threads:
        thread.join()
    assert ended == ["read", "zero"]
    disk.close()


def test_trimmed_room_is_given_back_and_zeros_keep_theirs(image: Path) -> None:
    disk = opened(image)
    disk.write(b"x" * MIB, 0, True)
    full = image.stat().st_blocks
    disk.zero(MIB // 2, 0, may_trim=False, fua=True)
    assert image.stat().st_blocks == full
    disk.trim(MIB // 2, 0, True)
    assert image.stat().st_blocks <= full - MIB // 2 // 512
    assert list(disk.extents(2 * MIB, 0)) == [
        (0, MIB // 2, 3),
        (MIB // 2, MIB // 2, 0),
        (MIB, MIB, 3),
    ]
    assert list(disk.extents(4096, 64 * MIB - 4096)) == [(64 * MIB - 4096, 4096, 3)]
    assert list(disk.extents(4096, MIB - 4096)) == [(MIB - 4096, 4096, 0)]
    disk.close()


def test_where_the_file_system_can_not(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros are left to be written; a trim does nothing."""
    monkeypatch.setattr(_nbd, "_fallocate", lambda *arguments: -1)
    monkeypatch.setattr("ctypes.get_errno", lambda: EOPNOTSUPP)
    disk = opened(image)
    disk.trim(4096, 0, False)
    with pytest.raises(OSError, match="to be written") as refused:
        disk.zero(4096, 0, may_trim=True, fua=False)
    assert refused.value.errno == EOPNOTSUPP
    monkeypatch.setattr("ctypes.get_errno", lambda: ENOSPC)
    with pytest.raises(OSError, match="No space") as full:
        disk.zero(4096, 0, may_trim=True, fua=False)
    assert full.value.errno == ENOSPC
    disk.close()


@needs("losetup")
@pytest.mark.parametrize("direct", [False, True])
def test_a_device(direct: bool, image: Path) -> None:
    """Its size is another one's to say, it has no holes, and whole blocks only are made zeros."""
    attached = subprocess.run(
        ["losetup", "-f", "--show", str(image)], capture_output=True, text=True, env=around()
    )
    if attached.returncode:
        pytest.skip(f"no loop devices: {attached.stderr}")
    device = attached.stdout.strip()
    try:
        disk = opened(Path(device), direct=direct)
        assert disk.size == 64 * MIB
        assert not disk.can_extents
        disk.write(b"x" * 100_000, 4096, True)
        disk.zero(8192, 8192, may_trim=False, fua=True)
        disk.trim(8192, 32768, True)
        disk.trim(10, 5000, True)
        with pytest.raises(OSError, match="to be written"):
            disk.zero(100, 5000, may_trim=True, fua=False)
        got = bytearray(40960)
        disk.read_into(got, 0)
        assert got[4096:8192] == b"x" * 4096
        assert got[8192:16384] == bytes(8192)
        assert got[16384:32768] == b"x" * 16384
        disk.close()
    finally:
        run("losetup", "-d", device)


def test_with_a_journal_only_it_changes_the_file(image: Path, tmp_path: Path) -> None:
    disk = opened(image, journal=str(tmp_path / "journal"), write_window_ms=1e6)
    assert not disk.can_trim
    assert not disk.can_extents
    with pytest.raises(OSError, match=os.strerror(EOPNOTSUPP)):
        disk.zero(4096, 0, may_trim=True, fua=False)
    disk.write(b"alone", 63 * MIB, True)  # which is not held
    disk.flush(Connection())
    disk.file.flush()
    before = image.read_bytes()
    disk.write(b"z" * (9 * MIB), 100, True)
    assert image.read_bytes() == before
    got = bytearray(9 * MIB)
    assert disk.read_into(got, 100) == 9 * MIB
    assert got == b"z" * (9 * MIB)
    disk.close()
    assert image.read_bytes()[100 : 100 + 9 * MIB] == got


def test_every_connection_hears_once_of_a_write_that_was_lost(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = opened(image, journal=str(tmp_path / "journal"))
    one, two = Connection(), Connection()
    lost = iter([OSError(ENOSPC, os.strerror(ENOSPC))])

    class Losing:
        def sync(self) -> None:
            for error in lost:
                raise error

    true_file = disk.file
    monkeypatch.setattr(disk, "file", Losing())
    for connection in (one, two):
        with pytest.raises(OSError, match="No space"):
            disk.flush(connection)
        disk.flush(connection)
    monkeypatch.setattr(disk, "file", true_file)
    disk.close()


def test_a_disk_of_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    disk = opened(tmp_path / "empty")
    assert disk.size == 0
    assert disk.can_extents
    assert list(disk.extents(0, 0)) == []
    disk.flush(Connection())
    disk.close()


def test_a_flush_that_failed_for_want_of_memory_failed_for_the_others_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    disk = _nbd.JournalledDisk(str(tmp_path / "disk"), "r+", {"journal": tmp_path / "journal"})
    try:

        def sync() -> None:
            raise MemoryError

        monkeypatch.setattr(disk.file, "sync", sync)
        connections = Connection(), Connection()
        with pytest.raises(MemoryError):
            disk.flush(connections[0])
        monkeypatch.undo()
        disk.flush(connections[0])
        with pytest.raises(MemoryError):  # of the round before, which may have been its own
            disk.flush(connections[1])
    finally:
        disk.close()
