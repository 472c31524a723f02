"""One group of the log: which records go, how they lie in the buffer, and what becomes of them.

    gathered -> take_group -> encode_group -> write_group -> end_group -> RECEIVED, UNKNOWN
                    |  no room for a segment, or a journal that has failed  -> REFUSED

1. A group has records of one kind of size; a large one never makes small ones wait that were there
   before it. It is one write and one sync, and begins and ends with whole blocks.
2. What is taken out of line is in `group` or `passed` before it is out of line.
3. A record that is never written has a place all the same: that of the next one that is.

Who may call: whoever commits, with the GIL; `encode_group` and `write_group` without, as the group
and the buffer are nobody else's.
"""

import collections
import errno
import os

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.object cimport PyObject
from libc.errno cimport EAGAIN, EINTR, EIO
from libc.errno cimport errno as c_errno
from libc.stdint cimport int64_t, uint16_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset
from posix.unistd cimport pwrite

from ._log cimport (
    COMMITTING, RECEIVED, REFUSED, UNKNOWN, LiveSegment, Log, Receipt, ReceiptState,
)
from ._records cimport BLOCK, END, WRITE_RECORD, put_record, record_bytes
from ._system cimport iolift_datasync, iolift_direct_alignment, iolift_set_direct

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void** memory, size_t alignment, size_t size)

cdef extern from "Python.h":
    enum:
        PyBUF_READ

cdef enum:
    # A record of more begins a group of its own.
    SMALL_BYTES = 1 << 17
    # What a group of small records may grow to, and one of large ones, or of a backlog that keeps
    # the device busy for longer than that anyway.
    GROUP_BYTES = 1 << 20
    LARGE_GROUP_BYTES = 1 << 22
    BACKLOG_BYTES = 1 << 22
    MAX_REFUSALS = 100


cdef int64_t group_bytes(list group) noexcept:
    cdef int64_t size = 0
    cdef Receipt receipt
    for receipt in group:
        size += record_bytes(receipt.size + receipt.key_size)
    return size


cdef int64_t padded(int64_t size) noexcept nogil:
    return (size + BLOCK - 1) & ~<int64_t>(BLOCK - 1)


cdef bint is_large(Receipt receipt) noexcept:
    return receipt.size > SMALL_BYTES


cdef int64_t group_limit(Log self, Receipt first) noexcept:
    cdef int64_t limit = GROUP_BYTES
    if is_large(first) or self.gathered_bytes >= BACKLOG_BYTES:
        limit = LARGE_GROUP_BYTES
    return min(limit, self.segment_bytes // 2)


cdef int64_t room_in_segment(Log self) noexcept:
    # For records, once they are padded.
    return (self.segment_bytes - self.position - (0 if self.header is None else BLOCK)
            - group_bytes(self.prologue))


cdef int64_t next_group(Log self) except -1:
    # Bytes of the records that would go now. May let others in.
    cdef Receipt receipt, first = None
    cdef int64_t size = 0, more
    for receipt in self.gathered:
        if receipt.is_withdrawn:
            continue
        more = record_bytes(receipt.size + receipt.key_size)
        if first is None:
            first = receipt
        elif size + more > group_limit(self, first) or is_large(receipt) != is_large(first):
            break
        size += more
    return size


cdef bint needs_segment(Log self) except -1:
    cdef int64_t size = next_group(self)
    return size > 0 and padded(size) > room_in_segment(self)


cdef int64_t take_group(Log self) except -1:
    # Which records go now, and where: their bytes, padded; 0: none. OSError: there is no segment
    # for them.
    cdef Receipt receipt, first = None
    cdef int64_t limit = 0, size = 0, more
    self.passed = []
    self.group = []
    while needs_segment(self):
        self.journal.begin_segment(next_group(self))
        if self.position:
            raise RuntimeError("the journal gave no new segment")
        if self.poison is not None:
            raise self.poison
    reserve(self, BLOCK + padded(group_bytes(self.prologue) + next_group(self)))
    # From here on nobody comes in between; before, some may have come, or gone.
    while self.gathered:
        receipt = self.gathered[0]
        if not receipt.is_withdrawn:
            more = record_bytes(receipt.size + receipt.key_size)
            if first is None:
                first = receipt
                limit = group_limit(self, first)
            elif size + more > limit or is_large(receipt) != is_large(first):
                break
            if (padded(size + more) > room_in_segment(self)
                    or BLOCK + padded(group_bytes(self.prologue) + size + more) > self.room):
                break
        receipt.place = self.chain.sequence + len(self.prologue) + len(self.group)
        (self.passed if receipt.is_withdrawn else self.group).append(receipt)   # or no memory
        self.gathered.popleft()
        if not receipt.is_withdrawn:
            receipt.state = COMMITTING
            self.gathered_bytes -= more
            size += more
    if not self.group:
        return 0                        # what it had was withdrawn
    size = padded(size + group_bytes(self.prologue))
    self.header_size = 0
    if self.header is not None:
        self.header_size = BLOCK
        memcpy(self.buffer, PyBytes_AS_STRING(self.header), BLOCK)
    if self.prologue:
        self.group = self.prologue + self.group
        self.prologue = []
    return self.header_size + size


cdef int reserve(Log self, int64_t size) except -1:
    cdef void* memory = NULL
    if size <= self.room:
        return 0
    size = max(size, min(2 * self.room, <int64_t>LARGE_GROUP_BYTES))
    if posix_memalign(&memory, BLOCK, size):
        raise MemoryError
    free(self.buffer)
    self.buffer = <char*>memory
    self.room = size
    return 0


cdef void encode_group(Log self, PyObject** receipts, Py_ssize_t n, int64_t size) noexcept nogil:
    # The group is nobody else's: its objects stay, and what is read of them does not change.
    cdef char* place = self.buffer + self.header_size
    cdef Py_ssize_t i
    cdef PyObject* item
    cdef uint32_t flags
    for i in range(n):
        item = receipts[i]
        flags = (<Receipt>item).flags | (END if i == n - 1 else 0)
        (<Receipt>item).sequence = (<Receipt>item).place = self.chain.sequence
        place += put_record(place, &self.chain, <uint16_t>(<Receipt>item).type,
                            (<Receipt>item).target, (<Receipt>item).offset, (<Receipt>item).key,
                            (<Receipt>item).key_size, (<Receipt>item).memory,
                            <uint32_t>(<Receipt>item).size, flags)
    memset(place, 0, size - (place - self.buffer))


cdef bint go_direct(int descriptor) noexcept:
    # Groups are whole blocks already, and the page cache would take longer over them than the
    # device.
    cdef uint32_t of_memory = 0, of_offset = 0
    return (iolift_direct_alignment(descriptor, &of_memory, &of_offset) == 0
            and 0 < of_memory <= BLOCK and 0 < of_offset <= BLOCK
            and iolift_set_direct(descriptor, True) == 0)


cdef int write_group(Log self, int64_t size) noexcept nogil:
    # One write, one sync. 0 or -errno. What was interrupted or found no room has not happened, and
    # a short write goes on; a sync has one chance.
    cdef int64_t done = 0, got
    cdef int refusals = 0
    while done < size:
        if self.is_native:
            got = pwrite(self.descriptor, self.buffer + done, size - done, self.position + done)
            if got < 0:
                got = -c_errno
        else:
            got = write_hosted(self, self.buffer + done, size - done, self.position + done)
        if got == -EINTR or got == -EAGAIN:
            refusals += 1
            if refusals > MAX_REFUSALS:
                return <int>got
        elif got <= 0:
            return <int>got if got else -EIO
        else:
            done += got
            if done < size and self.is_direct:      # what is left of it may begin anywhere
                self.is_direct = False
                iolift_set_direct(self.descriptor, False)
    if self.is_native:
        return iolift_datasync(self.descriptor)
    return sync_hosted(self)


cdef int64_t write_hosted(Log self, char* memory, int64_t size, int64_t offset) noexcept with gil:
    cdef int64_t got
    try:
        got = self.storage.write(self.handle, PyMemoryView_FromMemory(memory, size, PyBUF_READ),
                                 offset)
        return got if got <= size else -EIO
    except OSError as error:
        return -<int64_t>(error.errno or EIO)
    except BaseException:
        return -EIO


cdef int sync_hosted(Log self) noexcept with gil:
    try:
        self.storage.sync(self.handle)
        return 0
    except OSError as error:
        return -<int>(error.errno or EIO)
    except BaseException:
        return -EIO


cdef int end_group(Log self, int64_t size, int result) except -1:
    cdef Receipt receipt
    if result < 0:
        poison(self, OSError(-result, os.strerror(-result)))
        fail(self.group, UNKNOWN, self.poison)
        fail(self.passed, REFUSED, self.poison)
        return 0
    for receipt in self.group:
        if receipt.key_size and receipt.type == WRITE_RECORD:
            remember(self, receipt)
    if size:
        self.position += size
        self.chain.durable = self.chain.sequence - 1
        self.durable_crc = self.chain.previous
        self.commits += 1
        self.bytes_written += size
        if self.header is not None:
            # It has all keys that are remembered, and it is on the device.
            self.header = None
            self.established = (<LiveSegment>self.segments[len(self.segments) - 1]).number
    for receipt in self.passed:
        end(receipt, RECEIVED)
    for receipt in self.group:
        end(receipt, RECEIVED)
        self.records += 1
        self.bytes_asked += receipt.size
    return 0


cdef void end(Receipt receipt, ReceiptState state) noexcept:
    receipt.state = state
    receipt.owner = None
    receipt.memory = NULL
    if receipt.watchers is not None:
        watchers, receipt.watchers = receipt.watchers, None
        if receipt.log.heard is None:
            receipt.log.heard = []
        for fn in watchers:
            receipt.log.heard.append((fn, receipt))


cdef int remember(Log self, Receipt receipt) except -1:
    forget_key(self, receipt)
    self.keys.pop(receipt.key_bytes, None)
    self.keys[receipt.key_bytes] = receipt.sequence
    if len(self.keys) > self.max_keys:
        del self.keys[next(iter(self.keys))]
    return 0


cdef int forget_key(Log self, Receipt receipt) except -1:
    # It is not under way any more.
    if receipt.key_size and self.keys_under_way.get(receipt.key_bytes) is receipt:
        del self.keys_under_way[receipt.key_bytes]
    return 0


cdef void fail(object receipts, ReceiptState state, object cause) noexcept:
    cdef Receipt receipt
    for receipt in receipts:
        receipt.cause = cause
        if receipt.log is not None:
            forget_key(receipt.log, receipt)
        end(receipt, state)


cdef int refuse(Log self, object cause) except -1:
    # There is no room for a segment, or no descriptor: nothing was written, and later there may be.
    # Of anything else nobody knows what it did to the disk.
    if cause.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE):
        return poison(self, cause)
    self.refusals += 1
    refuse_gathered(self, cause)
    return 0


cdef int poison(Log self, object cause) except -1:
    if self.poison is None:
        self.poison = cause
    refuse_gathered(self, cause)
    return 0


cdef void refuse_gathered(Log self, object cause) noexcept:
    cdef Receipt receipt
    gathered, self.gathered = self.gathered, collections.deque()
    self.gathered_bytes = 0
    for receipt in gathered:
        receipt.place = self.chain.sequence
    fail(gathered, REFUSED, cause)
