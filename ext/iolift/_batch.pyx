"""One batch on its way: plan -> chunks -> lane -> completions -> the outcome of each request.

1. A request's outcome depends on its own bytes only. A merged I/O that fails is done again, one
   request at a time, over the stretch that failed: reads as they lie in the file, writes in the
   order of their indices, so that the file is what executing them one by one would have left.
2. Short results are continued until all is moved; a read that returns nothing is at the end of
   the file. EINTR is repeated, EAGAIN too, a bounded number of times.
3. No buffer is given back while an operation that uses it is in flight, whatever happens: after
   an interrupt the batch stops submitting, waits for what is in flight, then raises.
4. The GIL is not held between the first submit and the last completion, but for a glance at
   pending signals every SIGNAL_CHECK_NS.
5. Memory: 24 bytes a request, 24 an extent, and for writes that overlap 24 a piece; a slot an
   operation in flight.

    next_chunk -> submit -> reap -> complete -> (again | settle -> free)
                                       |
                                       +-> failures -> split -> the same way, alone
"""

from libc.errno cimport EAGAIN, EINTR, EIO
from libc.math cimport INFINITY
from libc.stdint cimport INT64_MAX, int64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from posix.stat cimport S_ISREG, fstat, struct_stat
from posix.stdlib cimport posix_memalign

from ._backend cimport (
    BUSY, MAX_SEGMENTS, QUEUED, READ, WRITE, Answer, Lane, Operation, fork_generation,
)
from ._calls cimport hear_signals
from ._clip cimport keep_last
from ._gil cimport ask_for_gil, have_gil
from ._outcome cimport (
    Failure, add_failure, free_failures, note_end_of_file, note_error, parts_of_reads,
    parts_of_writes,
)
from ._plan cimport ExtentArray, Merger, end_merge, free_extents, merge_block, open_extent
from ._request cimport Extent, Request, align_down, align_up
from ._scatter cimport (
    BOUNCE_BYTES, MAX_CHUNK_BYTES, SCRATCH_BYTES, next_chunk, prepare_write, settle_read,
)
from ._sort cimport ORDER_ELEVATOR, ORDER_FIFO, Order, load_requests, sort_by_index
from ._system cimport (
    iolift_allocate, iolift_now_ns, iolift_pause_ns, iolift_read_cached, iovec,
)
from ._trace cimport Event, add_event, export_trace
from ._waste cimport affordable_gap
from .errors import ForkedError

cdef enum:
    FIRST_PAUSE_NS = 1000
    SIGNAL_CHECK_NS = 30000000
    # In flight at once, give or take a chunk: what Ctrl-C has to wait for.
    MAX_BYTES_OUT = 1 << 25
    # Prepared and not yet begun: a device that waits for us longer than for a page or two is idle.
    PUSH_BYTES = 1 << 18
    PAGE = 4096
    # Requests of a batch that are asked for in the page cache, at most.
    PROBES = 4


cdef extern from "<pthread.h>" nogil:
    int pthread_rwlock_rdlock(pthread_rwlock_t*)
    int pthread_rwlock_wrlock(pthread_rwlock_t*)
    int pthread_rwlock_unlock(pthread_rwlock_t*)


cdef class Batch:
    def __cinit__(self):
        self.trace = None
        self.max_waste = INFINITY

    def __dealloc__(self):
        cdef Py_ssize_t i
        if self.pieces != self.requests:
            free(self.pieces)
        free(self.requests)
        free_extents(&self.extents)
        free_extents(&self.ragged)
        for i in range(self.slot_count):
            free(self.slots[i].chunk.segments)
            free(self.slots[i].chunk.bounce)
        free(self.slots)
        free(self.finished)
        free(self.layout.scratch)
        free_failures(&self.failures)
        free(self.outcome.items)
        free(self.log.items)

    cdef int run(self, const int64_t* lengths, int64_t length, int64_t start) except -1:
        if self.prepare(lengths, length, start):
            with nogil:
                self.execute()
                ask_for_gil()
            have_gil()
        return self.conclude()

    cdef bint prepare(self, const int64_t* lengths, int64_t length, int64_t start) except -1:
        # lengths as in load_requests; start: where the elevator is. False: nothing is to be moved.
        cdef int status
        if self.costs is not None and self.kind == READ:
            self.learns = True
            self.rule.gap = min(self.costs.gap_for_batch(self.n), self.rule.max_io)
        with nogil:
            status = make_plan(self, lengths, length, start)
            if status == 0:
                status = make_slots(self)
        if status < 0:
            raise MemoryError(f"batch of {self.n} requests")
        self.generation = fork_generation()
        if self.slot_count == 0:
            return False
        # Writes to the page cache exclude each other within a file: to hand them to other threads,
        # the kernel's or ours, only costs.
        self.lane = self.backend.acquire(self.slot_count == 1 or (
            self.kind == WRITE and self.target.alignment == 1))
        self.tracing = self.trace is not None or self.recorder is not None
        return True

    cdef void execute(self) noexcept nogil:
        self.began_ns = self.last_signal_check_ns = iolift_now_ns()
        lock_pages(self, self.ragged.size > 0)
        drive_all(self)
        self.ended_ns = iolift_now_ns()
        if self.failures.size and not stops(self):
            if not self.exclusive:
                unlock_pages(self)
                lock_pages(self, True)
            split_failures(self)
        unlock_pages(self)

    cdef int conclude(self) except -1:
        return 0 if self.lane is None else raise_what_went_wrong(self)

    cdef int64_t last_position(self) noexcept:
        # Where a full turn of the elevator ends: the extent before the one that it begins with.
        cdef Py_ssize_t last = self.next_extent - 1
        return self.extents.items[last if last >= 0 else self.extents.size - 1].end

    cdef int64_t bytes_planned(self) noexcept:
        # What its extents move. The ragged ends of direct writes are in none.
        cdef Py_ssize_t i
        cdef int64_t size = 0
        for i in range(self.extents.size):
            size += self.extents.items[i].end - self.extents.items[i].offset
        return size


cdef int raise_what_went_wrong(Batch self) except -1:
    # ... with the batch as a whole, the most urgent first.
    cdef Lane lane = self.lane
    pending = None
    self.lane = None
    if is_forked(self):
        # The lane, and what is in flight on it, are the parent's.
        if self.interrupt is not None:
            raise self.interrupt
        raise ForkedError("forked in the middle of a call, by a signal handler: in the child, "
                          "open the file again")
    try:
        lane.raise_pending()
    except BaseException as error:
        pending = error
    self.backend.release(lane)
    if self.trace is not None:
        self.trace.append(export_trace(&self.log))
    if self.recorder is not None:
        self.recorder.add_ios(self.file_number, self.number, &self.log)
    if self.is_one and self.own_error:
        note_error(&self.outcome, 0, self.own_error)
    if self.interrupt is not None:
        raise self.interrupt
    if pending is not None:
        raise pending
    if self.out_of_memory or self.outcome.out_of_memory:
        raise MemoryError(f"batch of {self.n} requests")
    if self.learns and self.failures.size == 0:
        self.costs.learn(self.n, self.extents.size, self.bytes_planned(),
                         self.ended_ns - self.began_ns)
    return 0


# --------------------------------------------------------------------------------------- planning

cdef int make_plan(Batch self, const int64_t* lengths, int64_t length,
                   int64_t start) noexcept nogil:
    cdef Merger merger
    cdef int status
    # Overlapping writes are clipped in the order of offsets, whatever order they go in later.
    cdef Order order = self.order if self.kind == READ else ORDER_ELEVATOR
    self.outcome.n = self.n
    memset(&merger, 0, sizeof(merger))
    merger.rule = self.rule
    merger.start = start if self.order == ORDER_ELEVATOR else 0
    self.requests = <Request*>iolift_allocate(self.n * sizeof(Request))
    if self.requests == NULL:
        return -1
    self.request_count = load_requests(self.rows.offsets, lengths, length, self.n, order,
                                       self.requests)
    if self.request_count < 0:
        return -1
    self.pieces = self.requests
    self.piece_count = self.request_count
    if self.kind == WRITE:
        merger.rule.gap = 0                    # a hole that is written through would be a lost byte
        self.piece_count = keep_last(self.requests, self.request_count, &self.pieces)
        if self.piece_count < 0:
            return -1
        if self.pieces == NULL:
            self.pieces = self.requests
        if self.order == ORDER_FIFO:
            if own_pieces(self) < 0:
                return -1
            sort_by_index(self.pieces, self.piece_count)
    else:
        merger.rule.alignment = self.target.alignment
        if self.learns and self.asks_cache and (self.request_count < 2 or is_cached(self)):
            # Of bytes in memory none is worth reading in vain; what they cost says nothing of the
            # device, either.
            self.learns = False
            merger.rule.gap = 0
        merger.rule.gap = affordable_gap(self.requests, self.request_count, &merger.rule,
                                         self.max_waste)
        if merger.rule.gap < 0:
            return -1
        self.rule.gap = merger.rule.gap
    status = merge_block(&merger, self.pieces, self.piece_count, NULL, NULL)
    end_merge(&merger)
    self.extents = merger.extents
    self.next_extent = merger.pivot
    if status < 0:
        return -1
    if self.kind == WRITE and self.target.alignment > 1 and cut_ragged_ends(self) < 0:
        return -1
    self.extents_left = self.extents.size
    return 0


cdef bint is_cached(Batch self) noexcept nogil:
    # Whether at least half of some requests are in the page cache. False where the kernel does not
    # say.
    cdef Py_ssize_t i, count = min(<Py_ssize_t>PROBES, self.request_count), cached = 0
    cdef char byte
    for i in range(count):
        cached += iolift_read_cached(self.target.descriptor, &byte, 1,
                                     self.requests[i * self.request_count // count].offset) >= 0
    return 2 * cached >= count


cdef int own_pieces(Batch self) noexcept nogil:
    # Pieces that are the requests themselves must be copied before they are put in another order.
    cdef Request* pieces
    if self.pieces != self.requests:
        return 0
    pieces = <Request*>malloc(max(1, self.piece_count) * sizeof(Request))
    if pieces == NULL:
        return -1
    memcpy(pieces, self.requests, self.piece_count * sizeof(Request))
    self.pieces = pieces
    return 0


cdef int cut_ragged_ends(Batch self) noexcept nogil:
    # For O_DIRECT: whole blocks stay extents, up to two ends of each become `ragged`. These go
    # through the page cache, after all direct ones and with the file's pages locked, because a
    # page that one writer has half in the cache must not change on the device meanwhile.
    cdef ExtentArray whole = ExtentArray(NULL, 0, 0)
    cdef Py_ssize_t k, pivot = 0
    cdef Extent extent
    cdef int64_t begin, end
    for k in range(self.extents.size):
        extent = self.extents.items[k]
        if k == self.next_extent:
            pivot = whole.size
        begin = min(align_up(extent.offset, self.target.alignment), extent.end)
        end = max(align_down(extent.end, self.target.alignment), begin)
        if (add_part(&self.ragged, &extent, extent.offset, begin) < 0
                or add_part(&whole, &extent, begin, end) < 0
                or add_part(&self.ragged, &extent, end, extent.end) < 0):
            free_extents(&whole)
            return -1
    free_extents(&self.extents)
    self.extents = whole
    self.next_extent = pivot if pivot < whole.size else 0
    return 0


cdef int add_part(ExtentArray* extents, const Extent* extent, int64_t begin,
                  int64_t end) noexcept nogil:
    if begin == end:
        return 0
    if open_extent(extents, begin, end, extent.lo) < 0:
        return -1
    extents.items[extents.size - 1].hi = extent.hi
    return 0


cdef int make_slots(Batch self) noexcept nogil:
    # No more than there are chunks; their segments come when they are first used.
    cdef Py_ssize_t i, count = min(self.ragged.size, self.backend.depth)
    cdef int64_t length
    cdef struct_stat status
    for i in range(self.extents.size):
        if count >= self.backend.depth:
            break
        length = self.extents.items[i].end - self.extents.items[i].offset
        count += 1 + min(length // MAX_CHUNK_BYTES, self.backend.depth)
        count += min((self.extents.items[i].hi - self.extents.items[i].lo) // MAX_SEGMENTS,
                     self.backend.depth)
        if self.target.alignment > 1:
            count += min(length // BOUNCE_BYTES, self.backend.depth)
    if self.is_one and self.kind == WRITE:
        count = min(count, 1)           # in the order of the bytes: it ends where it fails
    self.slot_count = min(count, self.backend.depth)
    self.slots = <Slot*>calloc(max(1, self.slot_count), sizeof(Slot))
    self.finished = <Operation**>malloc(max(1, self.slot_count) * sizeof(Operation*))
    self.layout.alignment = self.target.alignment
    self.layout.memory_alignment = self.target.memory_alignment
    self.layout.straight_end = INT64_MAX
    if self.kind == READ and self.target.alignment > 1:
        if fstat(self.target.descriptor, &status) == 0 and S_ISREG(status.st_mode):
            self.layout.straight_end = align_down(status.st_size, self.target.alignment)
    if self.slots == NULL or self.finished == NULL:
        self.slot_count = 0
        return -1
    for i in range(self.slot_count):
        self.slots[i].next = self.free_slots
        self.free_slots = &self.slots[i]
    if self.kind == READ and self.rule.gap and self.target.alignment == 1:
        self.layout.scratch = <char*>malloc(SCRATCH_BYTES)
        if self.layout.scratch == NULL:
            return -1
    return 0


cdef int furnish(Batch self, Slot* slot) noexcept nogil:
    # The memory of a slot, when it is first used.
    cdef void* bounce = NULL
    cdef Py_ssize_t room = MAX_SEGMENTS
    if slot.chunk.segments == NULL:
        if self.rule.gap == 0 and self.target.alignment == 1:
            room = min(room, self.piece_count)
        slot.chunk.segments = <iovec*>malloc(room * sizeof(iovec))
        if slot.chunk.segments == NULL:
            return -1
    if self.cursor_layout.alignment > 1 and slot.chunk.bounce == NULL:
        if posix_memalign(&bounce, PAGE, BOUNCE_BYTES):
            return -1
        slot.chunk.bounce = <char*>bounce
    return 0


# ---------------------------------------------------------------------------------------- driving

cdef bint advance(Batch self) noexcept nogil:
    # Puts the cursor on the next extent when it is at the end of one. False: nothing is left.
    cdef Extent* extent
    if self.cursor.position < self.cursor.end:
        return True
    if self.extents_left == 0:
        return False
    extent = &self.extents.items[self.next_extent]
    self.next_extent += 1
    if self.next_extent == self.extents.size:
        self.next_extent = 0
    self.extents_left -= 1
    aim(self, extent)
    return True


cdef void aim(Batch self, const Extent* extent) noexcept nogil:
    self.cursor = Cursor(extent.offset, extent.end, extent.lo, extent.hi)
    self.cursor_layout = self.layout
    self.cursor_descriptor = self.target.descriptor
    if self.cursor_is_ragged:
        self.cursor_descriptor = self.target.buffered_descriptor
        self.cursor_layout.alignment = self.cursor_layout.memory_alignment = 1


cdef Slot* take_slot(Batch self) noexcept nogil:
    # The next operation to submit, NULL when there is none (now).
    cdef Slot* slot
    if is_forked(self):
        return NULL
    if self.again != NULL:
        slot = self.again
        self.again = slot.next
        return slot
    if (self.free_slots == NULL or self.bytes_out >= MAX_BYTES_OUT or self.pausing
            or stops(self) or not advance(self)):
        return NULL
    slot = self.free_slots
    if furnish(self, slot) < 0:
        self.out_of_memory = 1
        self.extents_left = 0
        self.cursor.position = self.cursor.end
        return NULL
    self.free_slots = slot.next
    next_chunk(self.pieces, &self.rows, &self.cursor_layout, &self.cursor, &slot.chunk)
    if self.kind == WRITE:
        prepare_write(self.pieces, &self.rows, &self.cursor_layout, &slot.chunk)
    self.bytes_out += slot.chunk.end - slot.chunk.begin
    self.chunks_out += 1
    slot.moved = 0
    slot.refusals = 0
    slot.operation.kind = self.kind
    slot.operation.fd = self.cursor_descriptor
    slot.operation.offset = slot.chunk.begin
    slot.operation.segments = slot.chunk.segments
    slot.operation.segment_count = slot.chunk.segment_count
    slot.event = begin_event(self, slot) if self.tracing else -1
    return slot


cdef void drive_all(Batch self) noexcept nogil:
    cdef ExtentArray whole = self.extents
    self.cursor_is_ragged = False
    drive(self)
    if self.ragged.size and not stops(self) and not (self.is_one and self.own_error):
        self.extents = self.ragged
        self.cursor_is_ragged = True
        self.next_extent = 0
        self.extents_left = self.ragged.size
        drive(self)
        self.extents = whole


cdef void drive(Batch self) noexcept nogil:
    # Until nothing is left to submit and nothing is in flight.
    cdef Py_ssize_t in_flight = 0, n, i
    cdef int64_t held_back = 0
    cdef Slot* slot
    cdef Answer answer
    while True:
        slot = take_slot(self)
        while slot != NULL:
            answer = self.lane.submit(&slot.operation)
            if answer == BUSY:
                if in_flight == 0:
                    # Nothing that we could wait for: as if the kernel had said EAGAIN.
                    slot.operation.result = -EAGAIN
                    complete(self, slot)
                else:
                    give_again(self, slot)
                    break
            elif answer == QUEUED:
                in_flight += 1
                held_back += slot.chunk.end - slot.chunk.begin
                if held_back >= PUSH_BYTES:
                    held_back = 0
                    self.lane.push()
            else:
                complete(self, slot)
                check_signals(self, in_flight)
            slot = take_slot(self)
        if in_flight == 0 or is_forked(self):
            return
        # Come back when a quarter is done: the queue stays deep, also while we settle and refill,
        # and to come back for each one would cost a system call each.
        held_back = 0
        n = self.lane.reap(self.finished, self.slot_count, (in_flight + 3) // 4, SIGNAL_CHECK_NS)
        in_flight -= n
        for i in range(n):
            complete(self, <Slot*>self.finished[i])
        check_signals(self, in_flight)


cdef void check_signals(Batch self, Py_ssize_t in_flight) noexcept nogil:
    cdef int64_t now = iolift_now_ns()
    if self.deaf or now - self.last_signal_check_ns < SIGNAL_CHECK_NS or self.interrupted:
        return
    if self.locked:
        # A handler may write to this file: first let go of its pages, with nothing in flight.
        self.pausing = in_flight > 0
        if self.pausing:
            return
        unlock_pages(self)
    self.last_signal_check_ns = now
    with gil:
        try:
            hear_signals()
        except BaseException as error:
            self.interrupt = error
            self.interrupted = True
    if not is_forked(self):
        lock_pages(self, self.exclusive)


cdef inline bint is_forked(Batch self) noexcept nogil:
    return self.generation != fork_generation()


cdef inline bint stops(Batch self) noexcept nogil:
    return self.interrupted or self.lane.failed or is_forked(self)


cdef inline void give_again(Batch self, Slot* slot) noexcept nogil:
    slot.next = self.again
    self.again = slot


cdef inline void give_back(Batch self, Slot* slot) noexcept nogil:
    self.bytes_out -= slot.chunk.end - slot.chunk.begin
    self.chunks_out -= 1
    slot.next = self.free_slots
    self.free_slots = slot


cdef void complete(Batch self, Slot* slot) noexcept nogil:
    # The answer to one operation: all, a part, the end of the file, or an error.
    cdef int64_t left = slot.chunk.end - slot.chunk.begin - slot.moved
    cdef int64_t result = slot.operation.result
    cdef int64_t here
    if result == -EINTR or (result == -EAGAIN and slot.refusals < MAX_REFUSALS):
        if result == -EAGAIN:
            slot.refusals += 1
            iolift_pause_ns(min(<int64_t>MAX_PAUSE_NS,
                                <int64_t>FIRST_PAUSE_NS << min(slot.refusals, 20)))
        if self.interrupted:
            give_back(self, slot)
        else:
            give_again(self, slot)
        return
    if result > left or (result == 0 and self.kind == WRITE):
        result = -EIO                       # nothing that a file does
    if result > 0:
        slot.refusals = 0
        slot.moved += result
    here = slot.chunk.begin + slot.moved
    if result > 0 and result < left and not ends_inside_block(self, here):
        skip_segments(slot, result)
        give_again(self, slot)
        return
    if self.kind == READ:
        settle_read(self.pieces, &self.rows, &self.layout, &slot.chunk, here)
    if result < 0:
        note_failure(self, &slot.chunk, here, <int>-result)
    elif here < slot.chunk.end:
        note_end_of_file(&self.outcome, self.pieces, &self.rows, &slot.chunk, here)
    if slot.event >= 0:
        end_event(self, slot, result if result < 0 else slot.moved)
    give_back(self, slot)


cdef Py_ssize_t begin_event(Batch self, const Slot* slot) noexcept nogil:
    cdef Py_ssize_t place
    cdef Event event = Event(slot.chunk.begin, slot.chunk.end - slot.chunk.begin, 0, 0,
                             iolift_now_ns(), 0, self.kind, self.chunks_out)
    place = add_event(&self.log, &event)
    if place < 0:
        self.out_of_memory = 1
    return place


cdef void end_event(Batch self, const Slot* slot, int64_t result) noexcept nogil:
    cdef Event* event = &self.log.items[slot.event]
    cdef int64_t covered = slot.chunk.begin
    cdef uint32_t i
    event.done_ns = iolift_now_ns()
    event.result = result
    # Requests come by offset here, whatever the order: what they share counts once.
    for i in range(slot.chunk.lo, slot.chunk.hi):
        event.asked += max(<int64_t>0, min(self.pieces[i].end, slot.chunk.end)
                           - max(self.pieces[i].offset, covered))
        covered = max(covered, min(self.pieces[i].end, slot.chunk.end))


cdef inline bint ends_inside_block(Batch self, int64_t position) noexcept nogil:
    # Only the end of the file stops a direct read there; going on would be EINVAL.
    return self.kind == READ and position & (self.target.alignment - 1) != 0


cdef void skip_segments(Slot* slot, int64_t moved) noexcept nogil:
    cdef iovec* segments = slot.operation.segments
    slot.operation.offset += moved
    while moved >= <int64_t>segments.iov_len:
        moved -= segments.iov_len
        segments += 1
        slot.operation.segment_count -= 1
    segments.iov_base = <char*>segments.iov_base + moved
    segments.iov_len -= moved
    slot.operation.segments = segments


cdef void note_failure(Batch self, const Chunk* chunk, int64_t begin, int error) noexcept nogil:
    if self.splitting or self.is_one:
        # One request is at work: the error is its own, and it ends there.
        if self.own_error == 0:
            self.own_error = error
        self.extents_left = 0
        self.cursor.position = self.cursor.end
    elif add_failure(&self.failures, Failure(begin, chunk.end, chunk.lo, chunk.hi, error)) < 0:
        self.out_of_memory = 1


# -------------------------------------------------------------------------------------- splitting

cdef void split_failures(Batch self) noexcept nogil:
    # Each request of each stretch that failed gets its own I/O, over that stretch only.
    cdef Request* pieces = self.pieces
    cdef ExtentArray extents = self.extents
    cdef Request* parts
    cdef Py_ssize_t i, k, count = 0
    self.splitting = True
    memset(&self.extents, 0, sizeof(ExtentArray))
    for k in range(self.failures.size):
        if self.kind == WRITE:
            # All that were asked, also those that younger ones cover: one by one, they would have
            # been written first.
            parts = parts_of_writes(&self.failures, k, self.requests, self.request_count, &count)
        else:
            parts = parts_of_reads(&self.failures, k, pieces, &count)
        if parts == NULL:
            self.out_of_memory = 1
            break
        if count == 1 and fills(self, &parts[0], &self.failures.items[k]):
            note_error(&self.outcome, parts[0].index, self.failures.items[k].error)
        else:
            for i in range(count):
                if not self.interrupted:
                    do_alone(self, &parts[i])
        free(parts)
    free_extents(&self.extents)
    self.extents = extents
    self.pieces = pieces
    self.splitting = False


cdef bint fills(Batch self, const Request* part, const Failure* failure) noexcept nogil:
    # Whether the I/O that failed moved nothing but the bytes of this request: then it has its
    # answer. Otherwise the fault may have been in a hole.
    cdef int64_t alignment = self.target.alignment
    return (align_down(part.offset, alignment) <= failure.begin
            and align_up(part.end, alignment) >= failure.end)


cdef void do_alone(Batch self, Request* part) noexcept nogil:
    cdef int64_t alignment = self.target.alignment if self.kind == READ else 1
    self.pieces = part
    self.extents.size = self.ragged.size = 0
    self.next_extent = 0
    self.own_error = 0
    if open_extent(&self.extents, align_down(part.offset, alignment),
                   align_up(part.end, alignment), 0) < 0:
        self.out_of_memory = 1
        return
    self.extents.items[0].hi = 1
    if self.kind == WRITE and self.target.alignment > 1 and cut_ragged_ends(self) < 0:
        self.out_of_memory = 1
        return
    self.extents_left = self.extents.size
    drive_all(self)
    if self.own_error:
        note_error(&self.outcome, part.index, self.own_error)


# ------------------------------------------------------------------------------------------ locks

cdef void lock_pages(Batch self, bint exclusive) noexcept nogil:
    # A direct write must not meet a page that another batch has half written in the page cache.
    # There is no lock with a hosted backend: it may run handlers, or anything, in the middle.
    self.exclusive = exclusive
    if self.kind == WRITE and self.target.pages != NULL:
        self.locked = True
        if exclusive:
            pthread_rwlock_wrlock(self.target.pages)
        else:
            pthread_rwlock_rdlock(self.target.pages)


cdef void unlock_pages(Batch self) noexcept nogil:
    if self.locked:
        self.locked = False
        pthread_rwlock_unlock(self.target.pages)
