# The writing end of the journal: what gathers, and the one group that is being committed.

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from ._drivers cimport Drivers, Job, Timed
from ._records cimport Chain, RecordType


cdef enum ReceiptState:
    GATHERED = 0                # not given to the device yet
    COMMITTING = 1              # in the group that is on its way
    RECEIVED = 2                # on the device, for good
    REFUSED = 3                 # never written, for good
    UNKNOWN = 4                 # given to the device, which failed: may be there, or not


cdef class Receipt:
    # One record to be, and what became of it. Only the last part of a large request is handed out.
    cdef Log log
    cdef object owner           # keeps `memory` alive; gone when it is received
    cdef const char* memory
    cdef int64_t size
    cdef uint64_t offset
    cdef bytes key_bytes
    cdef const char* key        # in key_bytes
    cdef uint16_t key_size
    cdef uint32_t target
    cdef uint32_t flags
    cdef RecordType type
    cdef ReceiptState state
    cdef bint is_withdrawn      # never written; RECEIVED when those before it are
    cdef bint is_shared         # with somebody who came with the same key
    cdef readonly uint64_t sequence     # 0 until it is committing
    # Its sequence; where it was never written, that of the record that came next. 0: not known yet.
    cdef uint64_t place
    cdef Receipt head           # the first part of a request of several; None
    cdef list watchers          # callables, called with it when it is received or failed
    cdef object cause           # the OSError of REFUSED and UNKNOWN


cdef class LiveSegment:
    cdef int64_t number
    cdef object handle
    cdef uint64_t first         # no record before this one is in it


cdef class Log(Timed):
    cdef object journal         # begin_segment(bytes needed) is asked of it
    cdef object storage
    cdef bint is_native         # a handle is a descriptor
    cdef Drivers waiters        # their meeting place: no threads of its own
    cdef object __weakref__
    cdef readonly object handle
    cdef int descriptor
    cdef bint is_direct         # past the page cache
    cdef int64_t position       # where the next batch begins in the segment
    cdef int64_t segment_bytes
    cdef int64_t max_part
    cdef object header          # bytes of the segment's first block, until they are written
    cdef list prologue          # Receipts that go with it
    cdef Chain chain
    cdef uint32_t durable_crc   # of record `chain.durable`
    cdef Py_ssize_t header_size     # 0, or BLOCK where the group begins a segment
    cdef object gathered        # collections.deque of Receipts
    cdef Receipt youngest       # of all that were ever gathered
    cdef list group
    cdef list passed            # that were withdrawn, up to the end of the group
    cdef list heard             # of the last group, and has watchers
    cdef bint was_known         # the key of what was added last
    cdef bint has_job           # a driver is about to commit
    cdef bint drains            # ... until nothing is left
    cdef readonly dict keys     # idempotency key -> sequence; the oldest first
    cdef dict keys_under_way    # -> Receipt
    cdef Py_ssize_t max_keys
    cdef list segments          # LiveSegments, the oldest first; the last one is written to
    # The number of the youngest segment that has, with those after it, all keys on the device.
    cdef public int64_t established
    cdef public Py_ssize_t max_segments
    cdef readonly int64_t gathered_bytes
    cdef readonly bint is_committing
    cdef unsigned long committer    # the thread that is at it
    cdef unsigned long main_thread
    cdef uint32_t generation    # of forks
    cdef bint is_closed
    cdef uint64_t refusals      # how often what had gathered was refused for want of room
    cdef readonly object poison
    cdef char* buffer
    cdef int64_t room
    cdef readonly int64_t commits, records, bytes_asked, bytes_written

    cdef Receipt add(self, RecordType type, uint32_t target, uint64_t offset, bytes key,
                     object owner, const char* memory, int64_t size)
    cdef int help(self, int64_t until_ns, bint leads) except -1
    cdef int commit(self) except -1
    cdef int wait_for_commit(self, int64_t until_ns) except -1
    cdef int wait_until(self, Receipt receipt, int64_t until_ns) except -1
    cdef int wait(self, Receipt receipt, int64_t until_ns) except -1
    cdef int settle(self, Receipt receipt, bint leads) except -1
    cdef bint withdraw(self, Receipt receipt) except -1
    cdef Receipt find_key(self, bytes key)
    cdef int commit_aside(self, Drivers drivers, bint all_of_it) except -1
    cdef bint has_room(self, int64_t size, Py_ssize_t staying) noexcept
    cdef int64_t first_needed(self, uint64_t through) noexcept
    cdef Py_ssize_t needed_segments(self, uint64_t through) noexcept


cdef class CommitJob(Job):
    cdef Log log

    cdef bint start_thread(self)


cdef enum:
    # So much gathers before a driver commits it where nobody waits: a device is about as fast with
    # groups of this size as with any.
    COMMIT_BYTES = 1 << 20


cdef object error_of_receipt(Receipt receipt)
