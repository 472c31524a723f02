# One batch: planned requests on their way through a lane, and the outcome of each.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from ._backend cimport Backend, Kind, Lane, Operation
from ._costs cimport Costs
from ._outcome cimport Failures, Outcome
from ._plan cimport ExtentArray, Rule
from ._recorder cimport Recorder
from ._request cimport Extent, Request
from ._sort cimport Order
from ._scatter cimport Chunk, Cursor, Layout, Rows
from ._system cimport iovec
from ._trace cimport TraceLog


cdef enum:
    MAX_REFUSALS = 100          # EAGAIN in a row, with MAX_PAUSE_NS between: 0.1 s in all
    MAX_PAUSE_NS = 1000000


cdef struct Slot:
    # One operation and the memory it needs. Lives as long as its batch.
    Operation operation         # first: what a lane gives back is the slot
    Chunk chunk
    int64_t moved               # bytes of the chunk that are confirmed
    int refusals                # EAGAIN in a row
    Py_ssize_t event            # of batch.log; -1: none
    Slot* next                  # in Batch.free or Batch.again


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_rwlock_t:
        pass


cdef struct Target:
    # The file, as a batch needs it. Owned by the file; it outlives the batch.
    int descriptor
    int buffered_descriptor     # the same file without O_DIRECT; == descriptor if not direct
    int64_t alignment
    int64_t memory_alignment
    pthread_rwlock_t* pages     # see lock_pages; NULL unless direct and ours to lock


cdef class Batch:
    # set by the owner before `run`
    cdef Backend backend
    cdef Kind kind
    cdef Order order
    cdef Rule rule
    cdef Target target
    cdef Rows rows
    cdef Py_ssize_t n           # requests, in the caller's order
    cdef double max_waste       # bytes read for gaps, at most, a byte asked
    cdef Costs costs            # of reads: what says how wide a gap pays; None: rule.gap does
    cdef bint asks_cache        # ... where the page cache does not have the bytes
    cdef bint deaf              # signals are not for this thread to hear, or to stop for
    cdef bint is_one            # the requests are parts of one: it succeeds or fails as a whole
    cdef list trace             # of int64[k, 3], or None
    cdef Recorder recorder      # or None ...
    cdef int32_t file_number    # ... which knows the file by this
    cdef uint64_t number        # ... and the batch
    # the result
    cdef Outcome outcome
    # planned
    cdef Request* requests      # by offset (elevator)
    cdef Py_ssize_t request_count
    cdef Request* pieces        # of writes: what survives; may be == requests
    cdef Py_ssize_t piece_count
    cdef ExtentArray extents
    cdef ExtentArray ragged     # the ends of direct writes that no block holds
    cdef Py_ssize_t next_extent
    cdef Py_ssize_t extents_left
    # on the way
    cdef Lane lane
    cdef Cursor cursor
    cdef int cursor_descriptor
    cdef Layout layout
    cdef Layout cursor_layout
    cdef bint cursor_is_ragged
    cdef Slot* slots
    cdef Py_ssize_t slot_count
    cdef Slot* free_slots
    cdef Slot* again            # to be submitted once more
    cdef Operation** finished   # room for slot_count
    cdef Failures failures
    cdef bint splitting         # a failure now is the answer of the one request at work
    cdef int own_error          # ... and this is it
    cdef int out_of_memory
    cdef int64_t last_signal_check_ns
    cdef bint interrupted       # submit no more
    cdef bint pausing           # submit no more until the signal handlers have run
    cdef bint locked            # holds target.pages ...
    cdef bint exclusive         # ... alone
    cdef uint32_t generation    # of forks, at the start
    cdef int64_t bytes_out      # in chunks that are under way
    cdef uint32_t chunks_out
    cdef object interrupt       # the exception that a signal handler raised
    cdef bint learns            # how long it takes says what the device costs
    cdef int64_t began_ns
    cdef int64_t ended_ns
    cdef bint tracing
    cdef TraceLog log

    # `run` is the three in a row. A batch that is prepared may be executed in any thread; whoever
    # concludes it learns what went wrong with the batch as a whole.
    cdef int run(self, const int64_t* lengths, int64_t length, int64_t start) except -1
    cdef bint prepare(self, const int64_t* lengths, int64_t length, int64_t start) except -1
    cdef void execute(self) noexcept nogil
    cdef int conclude(self) except -1
    cdef int64_t last_position(self) noexcept
    cdef int64_t bytes_planned(self) noexcept
