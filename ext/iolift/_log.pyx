"""Log: the writing end of the journal, by group commit.

    add -> gathered -> (one group, of a leader) encode, one write, one fdatasync -> RECEIVED
                            meanwhile others gather                             -> REFUSED, UNKNOWN

1. One group is on its way at a time. Whoever waits for a receipt and finds none on its way leads:
   it commits what has gathered until its own is received. There is no timer and no thread: who is
   alone goes at once, and who comes while a group is under way goes with the next.
2. A receipt is RECEIVED after the fdatasync that covers it, together with all of its group.
3. A large record never makes a small one wait that was there before: it begins a group of its own.
4. Any error of a write or a sync poisons the log: the group's outcome is UNKNOWN, what has gathered
   is REFUSED, and nothing is ever written or synced again. Where a new segment can't be had because
   there is no room, what has gathered is REFUSED, the log goes on, and no sequence was given away.
5. Sequences are given when a group leaves, so that those on the device have no holes. Until then a
   record may be withdrawn.
6. Who watches a receipt is called after the group has ended, by the leader: it may commit again.

Who may call: any thread, with the GIL, which guards every field. `commit` lets go of it while it
encodes and writes; the group and the buffer are its own then.
"""

import collections
import errno
import os
from _thread import start_new_thread
from threading import main_thread

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_SetInterrupt, PyErr_SetObject, PyErr_WriteUnraisable
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.sequence cimport PySequence_Fast_ITEMS
from libc.errno cimport EIO
from libc.stdint cimport INT64_MAX, int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free

from ._arguments cimport Buffer, parse_int, parse_timeout, take_buffer
from ._backend cimport fork_generation
from ._calls cimport begin_call, end_call, hear_signals, step_in, step_out
from ._commit cimport (
    encode_group, end_group, fail, forget_key, go_direct, needs_segment, poison, refuse,
    refuse_gathered, take_group, write_group,
)
from ._drivers cimport SIGNAL_CHECK_NS, Drivers, Job
from ._records cimport (
    BLOCK, CONTINUES, KEY_RECORD, MAX_KEY, MAX_PART, MAX_TARGETS, MORE, TRUNCATE_RECORD,
    WRITE_RECORD, Chain, RecordType, record_bytes,
)
from ._system cimport iolift_now_ns
from ._storage import DirectoryStorage
from .errors import ForkedError, OutcomeUnknownError, PoisonedError


@cython.final
@cython.freelist(64)
cdef class Receipt:
    """What became of a record: state, sequence, and wait() for it to be on the device."""

    @property
    def state(self):
        """"gathered", "withdrawn", "committing", "received", "refused" or "unknown"."""
        return name_of(self)

    def done(self):
        """Whether it is received, or has failed."""
        return self.state >= RECEIVED

    def add_done_callback(self, fn):
        """Call fn(receipt) when it is received or has failed, in whichever thread; now if it is."""
        watchers = [fn]                 # first: to make an object may let others in
        if self.state >= RECEIVED:
            fn(self)
        elif self.watchers is None:
            self.watchers = watchers
        else:
            self.watchers.append(fn)

    def __await__(self):
        if self.state < RECEIVED:
            yield from wait_on_loop(self).__await__()
        return self.wait()

    def wait(self, timeout=None):
        """Return its sequence when it is on the device; at most `timeout` seconds.

        Raises TimeoutError; OutcomeUnknownError where the device failed under it; PoisonedError
        or OSError where it was never written; concurrent.futures.CancelledError.
        """
        self.log.wait(self, parse_timeout(timeout))
        if self.is_withdrawn:
            from concurrent.futures import CancelledError       # which is slow to import
            raise CancelledError("the write was cancelled")
        return self.sequence

    def __repr__(self):
        return f"<receipt {self.sequence or '-'}: {name_of(self)}>"


cdef str name_of(Receipt receipt):
    if receipt.is_withdrawn:
        return "withdrawn"
    return ("gathered", "committing", "received", "refused", "unknown")[<int>receipt.state]


async def wait_on_loop(Receipt receipt):
    # At the end of the loop's turn a driver commits for all that await then.
    from asyncio import get_running_loop
    loop = get_running_loop()
    future = loop.create_future()

    def wake():
        if not future.done():
            future.set_result(None)

    def heard(_):
        try:
            loop.call_soon_threadsafe(wake)
        except RuntimeError:
            pass                        # the loop is closed: nobody awaits there any more

    receipt.add_done_callback(heard)
    loop.call_soon(commit_for_awaiting, receipt)
    await future


def commit_for_awaiting(Receipt receipt):
    """In the loop, after all tasks that were ready had their turn."""
    if receipt.state < RECEIVED:
        receipt.log.journal.commit_aside()


cdef object error_of_receipt(Receipt receipt):
    # Made anew for whoever asks; None where all is well.
    cause = receipt.cause
    if receipt.state < RECEIVED:
        return OutcomeUnknownError(EIO, "the journal lost sight of it: it may be there, or not")
    if receipt.state == UNKNOWN:
        return OutcomeUnknownError(cause.errno, f"the journal failed under it "
                                   f"({os.strerror(cause.errno)}): it may be there, or not")
    if receipt.state == REFUSED:
        if receipt.log.poison is None and cause.errno == errno.EBADF:
            return ValueError("the journal was closed before it was written")
        if receipt.log.poison is None:
            return OSError(cause.errno, f"{os.strerror(cause.errno)}: not written, the journal "
                           f"could not grow")
        return PoisonedError(cause.errno, f"the journal failed before "
                             f"({os.strerror(cause.errno)}): not written")
    return None


cdef class Log(Timed):
    def __cinit__(self, journal, storage, *, int64_t segment_bytes, uint64_t sequence,
                  uint32_t previous, dict keys=None, Py_ssize_t max_keys=0):
        """sequence, previous: of the last record that is durable, and its CRC. keys: idempotency
        key -> sequence, the oldest first, of which `max_keys` are remembered."""
        self.keys = {} if keys is None else keys
        self.keys_under_way = {}
        self.max_keys = max_keys
        self.journal = journal
        self.storage = storage
        self.is_native = type(storage) is DirectoryStorage
        self.waiters = Drivers(self, 0)
        self.generation = fork_generation()
        self.main_thread = main_thread().ident
        self.segments = []
        self.segment_bytes = segment_bytes
        # Header, a prologue of a quarter, and a part with its key always fit in a segment.
        self.max_part = min(<int64_t>MAX_PART, segment_bytes // 2 - BLOCK)
        self.position = segment_bytes           # there is none yet
        self.chain = Chain(sequence + 1, 0, sequence, previous)
        self.durable_crc = previous
        self.gathered = collections.deque()
        self.prologue = []
        self.max_segments = 1 << 30
        self.established = INT64_MAX

    def __dealloc__(self):
        free(self.buffer)

    @property
    def durable(self):
        """Every record up to this one is on the device."""
        return self.chain.durable

    @property
    def live_segments(self):
        """How many there are."""
        return len(self.segments)

    @property
    def checkpointable(self):
        """(durable sequence, CRC of that record)."""
        return self.chain.durable, self.durable_crc

    def seal(self):
        """Nothing is gathered from now on. What was is received, or has failed, on return."""
        self.is_closed = True
        self.drain()

    def close(self):
        """Nothing is gathered or written from now on: the descriptors go. What has gathered is
        refused."""
        while (self.is_committing and self.committer != PyThread_get_thread_ident()
               and self.generation == fork_generation()):
            self.wait_for_commit(INT64_MAX)
        self.is_closed = True
        self.handle = None
        self.descriptor = -1
        refuse_gathered(self, OSError(errno.EBADF, os.strerror(errno.EBADF)))
        self.waiters.land()
        if self.heard is not None:
            tell(self)

    # ---------------------------------------------------------------------------------- gathering

    def write(self, target, offset, data, bytes key=b""):
        """Gather a write; returns its Receipt. bytes are kept, anything else is copied. O(1).

        Where the key is known, nothing is gathered, and the receipt is the first one's.
        """
        cdef Buffer buffer
        if type(data) is not bytes:
            buffer = take_buffer(data, "data", False)
            data = (<char*>buffer.view.buf)[:buffer.view.len]
        cdef int64_t size = PyBytes_GET_SIZE(data)
        cdef int64_t position = parse_int(offset, "offset", 0, INT64_MAX - size)
        return self.add(WRITE_RECORD, parse_int(target, "target", 0, MAX_TARGETS - 1), position,
                        key, data, PyBytes_AS_STRING(data), size)

    def truncate(self, target, size):
        """Gather a change of a target's size; returns its Receipt. O(1)."""
        return self.add(TRUNCATE_RECORD, parse_int(target, "target", 0, MAX_TARGETS - 1),
                        parse_int(size, "size", 0, INT64_MAX), b"", None, NULL, 0)

    cdef Receipt add(self, RecordType type, uint32_t target, uint64_t offset, bytes key,
                     object owner, const char* memory, int64_t size):
        # The Receipt of its last part. All of them are made before any is put in line: to make an
        # object may let others in, who must not come between. `was_known`: of the key; nothing was
        # gathered, and the Receipt is the first one's.
        cdef Receipt receipt = None, head = None
        cdef int64_t part, total = 0
        cdef list parts = []
        self.check()
        if len(key) > MAX_KEY:
            raise ValueError(f"key has {len(key)} bytes, at most {MAX_KEY} are allowed")
        while receipt is None or size:
            part = min(size, self.max_part)
            receipt = Receipt.__new__(Receipt)
            receipt.log = self
            receipt.head = head
            receipt.type = type
            receipt.target = target
            receipt.offset = offset
            receipt.owner = owner
            receipt.memory = memory
            receipt.size = part
            receipt.flags = (CONTINUES if parts else 0) | (MORE if part < size else 0)
            set_key(receipt, b"" if part < size else key)
            total += record_bytes(part + receipt.key_size)
            parts.append(receipt)
            head = parts[0]
            offset += part
            memory += part
            size -= part
        head = self.find_key(key)
        self.was_known = head is not None
        if self.was_known:
            head.is_shared = True
            return head
        self.check()
        self.gathered.extend(parts)
        self.youngest = receipt
        self.gathered_bytes += total
        if receipt.key_size:
            self.keys_under_way[key] = receipt
        return receipt

    def check(self):
        """Raise ForkedError, ValueError or PoisonedError where nothing would be gathered."""
        if self.generation != fork_generation():
            raise ForkedError("this journal belongs to the parent process")
        if self.is_closed:
            raise ValueError("I/O operation on closed journal")
        if self.poison is not None:
            raise PoisonedError(self.poison.errno, f"the journal failed before "
                                f"({os.strerror(self.poison.errno)}): no more is accepted")

    def fail(self, error):
        """The journal's owner met an error of its own: from now on nothing is gathered. A group
        that is on its way to the device may still get there."""
        poison(self, error)
        self.waiters.land()
        if self.heard is not None and not self.is_committing:
            tell(self)

    cdef Receipt find_key(self, bytes key):
        # Nothing in here lets go of the GIL, so who finds nothing may add it.
        cdef Receipt receipt
        if not key:
            return None
        receipt = self.keys_under_way.get(key)
        if receipt is not None and receipt.state in (GATHERED, COMMITTING):
            return receipt
        sequence = self.keys.get(key)
        if sequence is None:
            return None
        receipt = Receipt.__new__(Receipt)
        receipt.log = self
        receipt.state = RECEIVED
        receipt.sequence = sequence
        return receipt

    def find(self, bytes key):
        """The Receipt of the write with this key; None where it is not known. O(1)."""
        return self.find_key(key)

    # ----------------------------------------------------------------------------------- waiting

    cdef int wait_for_commit(self, int64_t until_ns) except -1:
        # The one under way, whoever's it is.
        return self.waiters.wait_among(&self.waiters.waiting, until_ns)

    cdef int help(self, int64_t until_ns, bint leads) except -1:
        # One step on the way to a receipt: commit what has gathered, or wait for who does. leads:
        # the caller has the time that a commit takes, whatever that is.
        if self.generation != fork_generation():
            raise ForkedError("this journal belongs to the parent process")
        if self.is_committing:
            if self.committer == PyThread_get_thread_ident():
                raise OSError(errno.EDEADLK, "a signal handler waits for what it has interrupted")
            return self.wait_for_commit(until_ns)
        # To begin a segment is Python code, and a handler that waits for the journal may come in
        # between in the main thread: another one does it.
        if not leads or (self.is_native and PyThread_get_thread_ident() == self.main_thread
                         and needs_segment(self)):
            self.journal.commit_aside()
            if self.gathered and not self.is_committing:
                self.wait_for_commit(min(until_ns, iolift_now_ns() + SIGNAL_CHECK_NS))
            return 0
        return self.commit()

    cdef int wait_until(self, Receipt receipt, int64_t until_ns) except -1:
        # Returns when it is received or has failed, or when the time is up.
        while receipt.state < RECEIVED:
            self.help(min(until_ns, iolift_now_ns() + SIGNAL_CHECK_NS), until_ns == INT64_MAX)
            hear_signals()
            if iolift_now_ns() >= until_ns:
                break
        return 0

    cdef int wait(self, Receipt receipt, int64_t until_ns) except -1:
        self.wait_until(receipt, until_ns)
        if receipt.state < RECEIVED:
            raise TimeoutError("the journal has not received it yet")
        if receipt.state != RECEIVED:
            raise error_of_receipt(receipt)
        return 0

    cdef int settle(self, Receipt receipt, bint leads) except -1:
        # Returns when it is received or has failed, whatever comes: others depend on the caller,
        # which hears no signals, as it is not the main thread but at the interpreter's end.
        cdef bint was_interrupted = False
        while receipt.state < RECEIVED:
            try:
                self.help(INT64_MAX, leads)
            except KeyboardInterrupt:
                was_interrupted = True          # for whoever stands here, once this is done
            except ForkedError:
                raise                           # the child has nobody who could end it
            except BaseException as error:
                self.fail(OSError(EIO, repr(error)))
        if was_interrupted:
            PyErr_SetInterrupt()
        return 0

    cdef bint withdraw(self, Receipt receipt) except -1:
        # As if it had never been made. False: it is on its way, has several parts, or is the
        # receipt of somebody else, too, who came with the same key.
        if receipt.state != GATHERED or receipt.head is not None or receipt.is_shared:
            return False
        receipt.is_withdrawn = True
        receipt.owner = None
        receipt.memory = NULL
        forget_key(self, receipt)
        self.gathered_bytes -= record_bytes(receipt.size + receipt.key_size)
        return True

    cdef int64_t first_needed(self, uint64_t through) noexcept:
        # The oldest segment with a record after `through`, or with keys that no later one has. A
        # segment's records end where the next one's begin.
        cdef Py_ssize_t i
        for i in range(len(self.segments) - 1):
            if (<LiveSegment>self.segments[i + 1]).first > through + 1:
                return min(self.established, (<LiveSegment>self.segments[i]).number)
        return self.established

    cdef Py_ssize_t needed_segments(self, uint64_t through) noexcept:
        # How many would stay after a checkpoint of all records up to `through`.
        cdef int64_t first = self.first_needed(through)
        cdef LiveSegment segment
        cdef Py_ssize_t n = 0
        for segment in self.segments:
            n += segment.number >= first
        return n

    def first_needed_after(self, through):
        """The number of the oldest segment that must stay after a checkpoint of all records up to
        `through`. O(segments)."""
        return self.first_needed(through)

    def drop_before(self, number):
        """Strike off segments with a lower number, the oldest first; their (number, handle)."""
        cdef LiveSegment segment
        cdef list dropped = []
        while self.segments and (<LiveSegment>self.segments[0]).number < number:
            segment = self.segments.pop(0)
            dropped.append((segment.number, segment.handle))
        return dropped

    cdef bint has_room(self, int64_t size, Py_ssize_t staying) noexcept:
        # Whether a request would fit behind all that has gathered, even if only a quarter of each
        # segment could be filled, when no more than `staying` segments have to stay.
        cdef int64_t quarter = self.segment_bytes // 4
        return ((self.max_segments - staying - 1) * quarter
                >= self.gathered_bytes + record_bytes(size))

    cdef int commit_aside(self, Drivers drivers, bint all_of_it) except -1:
        # What has gathered goes, all or in full groups, and the caller does not wait for it.
        cdef CommitJob job
        self.drains = self.drains or all_of_it
        if self.has_job or not self.gathered:
            return 0
        job = CommitJob.__new__(CommitJob)
        job.log = self
        self.has_job = True
        if drivers.is_busy() and job.start_thread():
            return 0                    # it waits for none of the many before it
        if not drivers.push(job):
            job.finish()
        return 0

    def commit_here(self):
        """What has gathered is committed by the caller, where no thread can do it."""
        while self.gathered and not self.is_committing:
            self.commit()

    def drain(self):
        """Return when nothing is gathered or on its way: all is received, or has failed."""
        while self.gathered or self.is_committing:
            self.help(iolift_now_ns() + SIGNAL_CHECK_NS, True)
            hear_signals()

    # -------------------------------------------------------------------------------- the commit

    def adopt_segment(self, number, handle):
        """A segment of before, whose records are all in the targets, but which has keys."""
        self.segments.append(new_segment(number, handle, 0))

    def begin_segment(self, number, handle, bytes header, uint64_t salt, list keys):
        """From here on records go to this segment. Called back from commit.

        handle: of a file of zeros, synced. header: its first block, which goes with the first
        batch. keys: (key, sequence) that are carried over into it.
        """
        cdef Receipt receipt
        cdef LiveSegment segment = new_segment(number, handle, self.chain.durable + 1)
        cdef list prologue = []
        for key, sequence in keys:
            receipt = Receipt.__new__(Receipt)
            receipt.log = self
            receipt.type = KEY_RECORD
            receipt.offset = sequence
            set_key(receipt, key)
            prologue.append(receipt)
        # All at once, or not at all.
        self.segments.append(segment)
        self.handle = handle
        self.descriptor = handle if self.is_native else -1
        self.is_direct = self.is_native and go_direct(self.descriptor)
        self.position = 0
        self.header = header
        self.chain.salt = salt
        self.prologue = prologue

    cdef int commit(self) except -1:
        # The next group, from gathering to receipts. Nobody else is at it.
        cdef int64_t size
        cdef int result = 0
        cdef PyObject** items
        cdef Py_ssize_t n
        if not self.gathered:
            return 0
        self.is_committing = True
        self.committer = PyThread_get_thread_ident()
        begin_call()
        try:
            try:
                size = take_group(self)
            except OSError as error:
                refuse(self, error)
                return 0
            if size:
                items = PySequence_Fast_ITEMS(self.group)
                n = len(self.group)
                with nogil:
                    encode_group(self, items, n, size)
                    result = write_group(self, size)
            end_group(self, size, result)
        except BaseException:
            # What was taken out has not ended: there is no memory.
            if self.group:
                poison(self, OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
                fail(self.group, UNKNOWN, self.poison)
            if self.passed:
                fail(self.passed, REFUSED, self.poison or OSError(errno.ENOMEM, "no memory"))
            raise
        finally:
            end_call()
            self.is_committing = False
            self.group = self.passed = None
            self.waiters.land()
            if self.heard is not None:
                tell(self)
        return 0


cdef LiveSegment new_segment(int64_t number, object handle, uint64_t first):
    cdef LiveSegment segment = LiveSegment.__new__(LiveSegment)
    segment.number = number
    segment.handle = handle
    segment.first = first
    return segment


cdef class CommitJob(Job):
    def run(self):
        self.finish()

    cdef bint start_thread(self):
        try:
            start_new_thread(self.run, ())
        except (RuntimeError, MemoryError):     # as of a driver
            return False
        return True

    cdef void finish(self) noexcept:
        cdef Log log = self.log
        try:
            while log.gathered and (log.drains or log.gathered_bytes >= COMMIT_BYTES):
                if log.is_committing:
                    log.wait_for_commit(INT64_MAX)
                else:
                    log.commit()
        except BaseException as error:
            log.fail(OSError(EIO, repr(error)))
        log.has_job = log.drains = False


cdef void tell(Log self) noexcept:
    cdef int calls = step_out()
    heard, self.heard = self.heard, None
    for fn, receipt in heard:
        try:
            fn(receipt)
        except BaseException as error:
            PyErr_SetObject(type(error), error)
            PyErr_WriteUnraisable(fn)
    step_in(calls)


cdef void set_key(Receipt receipt, bytes key) noexcept:
    receipt.key_bytes = key
    receipt.key = PyBytes_AS_STRING(key)
    receipt.key_size = <uint16_t>PyBytes_GET_SIZE(key)
