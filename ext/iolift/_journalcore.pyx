"""JournalledCore: an open file whose every change is a record of a journal first.

1. Whatever changes the file - single writes, ranges, vectors, truncates - gathers a record in the
   moment in which it takes its place among the others, and is done when that is received.
2. A sync is over when all records gathered before it are received, of whichever file.
3. A truncate takes its place when nothing is held or flying; writes that come meanwhile wait at the
   door, so that the order in the journal is the order in the file. Those of its own caller do not:
   they come from a signal handler, which may do something that the truncate waits for.
4. What a handler's call must not come into the middle of (a truncate from its record to the file, a
   checkpoint) the main thread leaves to another one, and waits for it (`do_aside`). For the same
   reason a truncate leads no commit: who does calls back.
5. The journal is closed after the last ticket and the last truncate, and before the descriptor;
   where close() was interrupted, by whatever is the last to end. A file that shares it with others
   leaves it with a checkpoint, and the last one closes it.
6. A finalizer may come into the middle of a checkpoint of its own thread. It leaves the rest to
   another one, and nobody waits for that.

Who may call: any thread, with the GIL.
"""

import _thread
import errno
import os
from stat import S_ISBLK

from cpython.pythread cimport PyThread_get_thread_ident
from libc.errno cimport EIO
from libc.stdint cimport INT64_MAX, int64_t

from ._arguments cimport (
    Buffer, Ranges, length_of, parse_int, parse_position, take_buffer, take_buffers,
)
from ._backend cimport SYNC, WRITE, fork_generation
from ._bulk cimport ranges_of_data
from ._durable cimport has_unheard_refusals, is_journal_tight, landed_through
from ._filecore cimport FileCore
from ._landing cimport Solo
from ._log cimport RECEIVED, Receipt, error_of_receipt
from ._records cimport MAX_KEY, TRUNCATE_RECORD
from ._solo cimport begin_solo, end_solo
from ._ticket cimport Ticket
from ._calls import in_call
from .errors import PoisonedError, RangeError


cdef class JournalledCore(FileCore):
    """A FileCore with a journal, which `attach` gives it before anything is written."""

    cdef list truncating            # threads whose truncate looks for its place
    cdef int cutting                # truncates that have been entered
    cdef bint is_finished           # the journal is closed, or is about to be
    cdef int64_t max_size           # of the file, bytes: the file system has no room for more

    def attach(self, journal, list sharers):
        """From now on every change goes through this journal. sharers: the cores of all files that
        it is for, one list for all of them, on one coalescer."""
        self.truncating = []
        self.journal = journal
        self.log = journal.log
        self.sharers = sharers
        self.target_number = journal.adopt(self.target.descriptor)
        self.max_size = largest_size(self.target.descriptor)

    def landed_sequence(self):
        """Every record up to this sequence is in its file, also those of other files."""
        return landed_through(self)

    def commit_aside(self):
        """What has gathered is committed by a driver."""
        self.log.commit_aside(self.scheduler.drivers, True)

    cdef int finish(self) except -1:
        if self.journal is not None:
            # At the interpreter's end there may be more and more of them, or one whose thread was
            # stopped: the journal refuses them.
            while self.is_closed and self.cutting and not self.is_finished:
                self.scheduler.wait_for_landing(INT64_MAX)
            self.is_finished = True
            leave_journal(self)
        return 0

    cdef int at_rest(self) except -1:
        if (self.is_closed and not self.is_finished and not self.is_draining and self.active == 0
                and self.pending == 0 and self.journal is not None
                and self.scheduler.generation == fork_generation()):
            self.is_finished = True
            self.is_draining = True         # others leave the descriptor to this one
            try:
                leave_journal(self)
            finally:
                self.is_draining = False
                FileCore.at_rest(self)
        else:
            FileCore.at_rest(self)
        return 0

    def drain_at_exit(self):
        # While there are threads: what one of them has locked when the interpreter ends stays so.
        # The first file that comes here ends all that share its journal.
        try:
            for core in list(self.sharers or ()):
                (<JournalledCore>core).drain()
            FileCore.drain_at_exit(self)
        finally:
            self.finish()

    cdef bint is_tight(self, int64_t size) noexcept:
        return size > 0 and (
            (self.truncating and PyThread_get_thread_ident() not in self.truncating)
            or is_journal_tight(self, size))

    def check_poison(self):
        FileCore.check_poison(self)
        if self.log is not None:
            try:
                self.log.check()
            except PoisonedError as error:
                raise PoisonedError(error.errno, error.strerror, self.name) from None

    cdef int check_request(self, int64_t size, object offset) except -1:
        # What the file would refuse must not get into the journal: every open would meet it again.
        if size > self.journal.max_request:
            raise ValueError(f"data has {size} bytes, the journal takes at most "
                             f"{self.journal.max_request} at once: see journal_max_bytes")
        if size and parse_position(offset, size) + size > self.max_size:
            raise OSError(errno.EFBIG, f"offset = {offset} and {size} bytes: a file here has at "
                          f"most {self.max_size}", self.name)
        return 0

    # ----------------------------------------------------------------------------------- writing

    cdef int check_key(self, object key) except -1:
        if type(key) is not bytes:
            raise TypeError(f"key must be bytes, not {type(key).__name__}")
        if not 1 <= len(key) <= MAX_KEY:
            raise ValueError(f"key has {len(key)} bytes, 1 to {MAX_KEY} are allowed")
        return 0

    def pwritev(self, buffers, offset):
        # One request, so that a crash leaves all of it or nothing.
        return self.pwrite(b"".join([(<char*>(<Buffer>part).view.buf)[:(<Buffer>part).view.len]
                                     for part in take_buffers(buffers, False)]), offset)

    def write_ranges(self, offsets, data, lengths=None):
        cdef Buffer memory = take_buffer(data, "data", False)
        cdef Ranges ranges = ranges_of_data(offsets, data, lengths, memory)
        cdef Py_ssize_t i
        cdef int64_t begin = 0, size
        tickets = []
        for i in range(ranges.n):           # all of them before any is held
            self.check_request(length_of(ranges, i), ranges.offsets[i])
        for i in range(ranges.n):
            size = length_of(ranges, i)
            tickets.append(self.submit_pwrite((<char*>memory.view.buf)[begin:begin + size],
                                              ranges.offsets[i]))
            begin += size
        raise_worst_of(self, tickets)
        return ranges.total

    def truncate(self, size):
        cdef int64_t length = parse_int(size, "size", 0, INT64_MAX)
        ident = PyThread_get_thread_ident()
        self.hold_open(WRITE)
        self.cutting += 1
        do_aside(self, lambda: truncate_entered(self, length, ident))

    # ------------------------------------------------------------------------------------ syncing

    def sync(self):
        cdef Receipt last
        self.enter(SYNC)
        try:
            self.scheduler.counters.syncs_asked += 1
            while self.parked_here:
                self.scheduler.wait_for_landing(INT64_MAX)
            last = self.log.youngest
            if last is not None:
                try:
                    self.log.wait(last, INT64_MAX)
                except OSError:
                    if self.log.poison is not None:
                        raise
            for core in list(self.sharers):
                # Whoever holds the ticket of what was refused is told there, else it is told here.
                if has_unheard_refusals(core):
                    settle(core)
            self.check_poison()
            for core in list(self.sharers):
                (<JournalledCore>core).raise_deferred()
        finally:
            self.leave()

    def checkpoint(self):
        """All that was submitted so far goes into the files of the journal and is synced there;
        what the journal has of it may go."""
        for core in list(self.sharers):
            settle(core)
        self.flush()
        self.hold_open(SYNC)
        do_aside(self, lambda: checkpoint_entered(self))


cdef int settle(JournalledCore self) except -1:
    # What it holds goes into the file. Errors are told where they belong.
    if self.is_closed:
        return 0
    self.enter(SYNC)
    try:
        self.settle_reads()
        self.settle_writes()
    finally:
        self.leave()
    return 0


cdef int leave_journal(JournalledCore self) except -1:
    # Nothing of this file is held or flying. At the interpreter's end it may still be open.
    cdef bint is_over = self.journal.closed, is_inside = self.journal.is_held_here()
    if is_inside:
        self.active += 1                # the descriptor stays, also where no thread can be had
        _thread.start_new_thread(in_call, (lambda: leave_entered(self),))
    elif is_over or not self.is_closed or is_last(self):
        close_journal(self)
    else:
        self.active += 1                # the descriptor stays until it is synced
        do_aside(self, lambda: leave_entered(self))
    return 0


cdef bint is_last(JournalledCore self) noexcept:
    return len(self.sharers) == 1 and self.sharers[0] is self


cdef int leave_entered(JournalledCore self) except -1:
    # The file is closed, and this is what its descriptor waits for.
    cdef JournalledCore other
    try:
        for core in list(self.sharers):
            settle(core)                # so that the checkpoint passes all that this file has
    finally:
        try:
            if is_last(self):
                close_journal(self)
            elif self in self.sharers:      # and not already gone
                self.sharers.remove(self)
                other = self.sharers[0]
                other.unlanded.extend(self.unlanded)    # they hold checkpoints back for good
                self.journal.release(self.target_number)
        finally:
            self.release()
    return 0


cdef int close_journal(JournalledCore self) except -1:
    # A Ctrl-C may be raised before its first line; then it has let go of nothing yet.
    try:
        self.journal.close()
    except BaseException:
        self.journal.close()
        raise
    return 0


cdef int do_aside(JournalledCore self, object work) except -1:
    # Whoever is interrupted stops waiting, and the work goes on. No Thread: its start can be
    # interrupted as well, and then nobody knows whether it runs.
    cdef list ended = []

    def run():
        try:
            in_call(work)
            ended.append(None)
        except BaseException as error:
            ended.append(error)
        finally:
            self.scheduler.drivers.land()

    if PyThread_get_thread_ident() == self.scheduler.main_thread:
        try:
            _thread.start_new_thread(run, ())
        except Exception:       # the interpreter ends, there may be no more, somebody forbids it
            run()
    else:
        run()
    while not ended:
        self.scheduler.wait_for_landing(INT64_MAX)
    if ended[0] is not None:
        raise ended[0]
    return 0


cdef int checkpoint_entered(JournalledCore self) except -1:
    # The one that a caller has entered.
    try:
        self.journal.checkpoint(landed_through(self))
    finally:
        self.release()
    return 0


cdef int truncate_entered(JournalledCore self, int64_t length, object ident) except -1:
    # The one that a caller, thread `ident`, has entered.
    try:
        change_size(self, length, ident)
    finally:
        self.cutting -= 1
        try:
            # Who found the journal full may go on: what this one had of it is in the file.
            self.scheduler.go_on()
        finally:
            self.scheduler.drivers.land()
            self.release()
    return 0


cdef int change_size(JournalledCore self, int64_t length, object ident) except -1:
    cdef Receipt receipt
    cdef Solo solo
    if length > self.max_size:
        raise OSError(errno.EFBIG, f"size = {length}: a file here has at most "
                      f"{self.max_size} bytes", self.name)
    if S_ISBLK(os.fstat(self.target.descriptor).st_mode):
        raise OSError(errno.EINVAL, "a block device keeps its size", self.name)
    receipt = take_place(self, &solo, length, ident)
    try:
        self.log.settle(receipt, False)
        if receipt.state != RECEIVED:
            self.unlanded.remove(receipt)
            raise error_of_receipt(receipt)
        if self.log.is_closed:
            # The journal may be somebody else's by now: the next open does it.
            self.poison = EIO
            raise ValueError("I/O operation on closed file")
        cut(self, length)
        self.unlanded.remove(receipt)
    finally:
        end_solo(self, &solo, 0)
    return 0


cdef Receipt take_place(JournalledCore self, Solo* solo, int64_t length, object ident):
    # Of a truncate: nobody else's change lies between its record and its place in the file.
    # ident: of who asked for it.
    cdef Receipt receipt
    self.settle_writes()                # those that were parked before, too
    self.truncating.append(ident)
    try:
        while self.window.has_writes() or self.window.reads.tickets.size:
            self.dispatch_reads("flush")
            self.dispatch_writes("flush")
            if self.window.has_writes() or self.window.reads.tickets.size:
                self.scheduler.wait_for_landing(INT64_MAX)
        # From here to the solo's place nothing lets go of the GIL.
        receipt = self.log.add(TRUNCATE_RECORD, self.target_number, length, b"", None, NULL, 0)
        self.unlanded.append(receipt)
        try:
            begin_solo(self, solo, WRITE, 0, INT64_MAX, NULL)
        except BaseException:
            if self.log.withdraw(receipt):
                self.unlanded.remove(receipt)
            else:
                # The journal has it, and the file never will: only an open can make them agree.
                self.poison = EIO
            raise
    finally:
        self.truncating.remove(ident)
        self.scheduler.go_on()
        self.scheduler.drivers.land()
    return receipt


cdef int64_t largest_size(int descriptor) except -1:
    # Of a file in this file system; of a device, what it has. O(log) seeks, which go nowhere. In
    # the file's own description: to close another would drop the process's locks on the file.
    cdef int64_t low = 0, high = INT64_MAX, middle
    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    try:
        if S_ISBLK(os.fstat(descriptor).st_mode):
            return os.lseek(descriptor, 0, os.SEEK_END)
        while low < high:
            middle = high - (high - low) // 2
            try:
                low = os.lseek(descriptor, middle, os.SEEK_SET)
            except OSError:
                high = middle - 1
        return low
    finally:
        os.lseek(descriptor, position, os.SEEK_SET)


cdef int cut(JournalledCore self, int64_t length) except -1:
    try:
        os.ftruncate(self.target.descriptor, length)
    except OSError as error:
        self.poison = error.errno       # ... here as well
        raise OSError(error.errno, error.strerror, self.name) from None
    return 0


cdef object raise_worst_of(JournalledCore self, list tickets):
    # All are waited for, then the first that failed by index counts.
    errnos = {}
    for i, ticket in enumerate(tickets):
        error = ticket.exception()
        if isinstance(error, PoisonedError):
            raise error
        if error is not None:
            errnos[i] = error.errno if isinstance(error, OSError) else EIO
    if errnos:
        i = next(iter(errnos))
        ticket = tickets[i]
        raise RangeError(errnos[i], self.name, i, (<Ticket>ticket).offset,
                         (<Ticket>ticket).end - (<Ticket>ticket).offset, errnos)
