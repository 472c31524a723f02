"""Window: what is held of one file, and the overlay.

1. Tickets are kept in the order of submission. A generation of writes is taken as a whole, and the
   next one gathers meanwhile, so that of two generations every write of the held one is younger
   than every write of the flying one.
2. A read looks at the overlay when it is submitted (`cover`): what held and flying writes have of
   it is copied then, the youngest first; what is left are its holes.
3. A write whose bytes were copied so is `seen`, and can't be withdrawn any more.
4. A withdrawn write stays where it is, passed over by its state. `supersede` lets go of what a
   write that can't be withdrawn covers: rewriting one page for ever takes the memory of a few.

Who may call: whoever holds the GIL, which guards every field. Nothing here runs Python code: the
references that are dropped are those of tickets, bytes objects and Buffers.
"""

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.stdint cimport INT64_MAX, int64_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from ._backend cimport SYNC, WRITE
from ._overlay cimport (
    NONE, PAGE_BITS, Walk, begin_walk, free_index, index_write, next_write, page_of, youngest,
)
from ._ticket cimport CANCELLED, HELD, Span, Ticket, is_observed


cdef enum:
    # How far `supersede` looks for a write whose ticket nobody has.
    MAX_STEPS = 8


# --------------------------------------------------------------------------------------- arrays

cdef int append(Tickets* tickets, Ticket ticket) except -1:
    cdef Py_ssize_t room
    cdef PyObject** items
    if tickets.size == tickets.room:
        room = max(16, 2 * tickets.room)
        items = <PyObject**>realloc(tickets.items, room * sizeof(PyObject*))
        if items == NULL:
            raise MemoryError
        tickets.items = items
        tickets.room = room
    Py_INCREF(ticket)
    tickets.items[tickets.size] = <PyObject*>ticket
    tickets.size += 1
    return 0


cdef void release(Tickets* tickets) noexcept:
    cdef Tickets old = tickets[0]
    cdef Py_ssize_t i
    memset(tickets, 0, sizeof(Tickets))
    for i in range(old.size):
        Py_XDECREF(old.items[i])
    free(old.items)


cdef inline int add_span(Spans* spans, int64_t begin, int64_t end) except -1:
    cdef Py_ssize_t room
    cdef Span* items
    if spans.size == spans.room:
        room = max(16, 2 * spans.room)
        items = <Span*>realloc(spans.items, room * sizeof(Span))
        if items == NULL:
            raise MemoryError
        spans.items = items
        spans.room = room
    spans.items[spans.size] = Span(begin, end)
    spans.size += 1
    return 0


cdef class Reads:
    def __dealloc__(self):
        release(&self.tickets)


cdef class Writes:
    def __cinit__(self):
        self.seen_from = INT64_MAX

    def __dealloc__(self):
        release(&self.tickets)
        free_index(&self.index)


# -------------------------------------------------------------------------------------- the window

cdef class Window:
    def __cinit__(self):
        self.reads = Reads()
        self.writes = Writes()

    def __dealloc__(self):
        free(self.left.items)

    cdef bint has_writes(self) noexcept:
        return self.writes.tickets.size > 0 or self.flying is not None

    cdef int64_t writes_end(self, bint with_flying) noexcept:
        # One past the last byte of any held or flying write; 0 when there is none.
        return max(self.writes.end,
                   self.flying.end if with_flying and self.flying is not None else 0)

    cdef void see_size_beyond(self, int64_t size) noexcept:
        # Somebody was shown a size that only writes past `size` make true.
        self.writes.seen_from = min(self.writes.seen_from, size)

    cdef int add_read(self, Ticket ticket) except -1:
        append(&self.reads.tickets, ticket)
        if self.reads.tickets.size == 1:
            self.reads.since_ns = ticket.submitted_ns
        self.reads.bytes += ticket.end - ticket.offset
        ticket.state = HELD
        return 0

    cdef int add_write(self, Ticket ticket) except -1:
        cdef Writes writes = self.writes
        append(&writes.tickets, ticket)
        if ticket.end > ticket.offset and index_write(
                &writes.index, <uint32_t>(writes.tickets.size - 1), ticket.offset,
                ticket.end) < 0:
            writes.tickets.size -= 1
            Py_DECREF(ticket)
            raise MemoryError
        if writes.tickets.size == 1:
            writes.since_ns = ticket.submitted_ns
        writes.bytes += ticket.end - ticket.offset
        if ticket.end > ticket.offset:
            writes.end = max(writes.end, ticket.end)
        writes.syncs += ticket.kind == SYNC
        ticket.state = HELD
        return 0

    cdef Reads take_reads(self, Reads fresh):
        cdef Reads reads = self.reads
        self.reads = fresh
        return reads

    cdef void drop_reads(self) noexcept:
        # The only one is done elsewhere: the caller has a reference of its own.
        cdef Tickets* tickets = &self.reads.tickets
        tickets.size = 0
        self.reads.bytes = 0
        Py_DECREF(<object>tickets.items[0])

    cdef Writes take_writes(self, Writes fresh):
        cdef Writes writes = self.writes
        self.writes = fresh
        return writes

    cdef int withdraw(self, Ticket ticket) except -1:
        # A held one, for good. Its place stays; its memory goes.
        cdef Py_ssize_t i
        cdef Ticket other
        ticket.state = CANCELLED
        if ticket.kind != WRITE:
            self.reads.bytes -= ticket.end - ticket.offset
        else:
            self.writes.bytes -= ticket.end - ticket.offset
            if ticket.end == self.writes.end:
                self.writes.end = 0
                for i in range(self.writes.tickets.size):
                    if self.writes.tickets.items[i] == NULL:
                        continue
                    other = <Ticket>self.writes.tickets.items[i]
                    if other.state == HELD and other.end > other.offset:
                        self.writes.end = max(self.writes.end, other.end)
        return 0

    # ----------------------------------------------------------------------------------- overlay

    cdef int cover(self, Ticket ticket, bint with_flying) except -1:
        # Copies what the overlay has of a read, and notes the holes. A walk per page.
        cdef int64_t position = ticket.offset, stop
        cdef Spans holes
        memset(&holes, 0, sizeof(holes))
        if not self.has_writes():
            return 0
        try:
            while position < ticket.end:
                stop = min(ticket.end - 1, position | ((1 << PAGE_BITS) - 1)) + 1
                self.left.size = 0
                add_span(&self.left, position, stop)
                copy_page(ticket, self.writes, &self.left)
                if with_flying:
                    copy_page(ticket, self.flying, &self.left)
                take_over(&holes, &self.left)
                position = stop
        except BaseException:
            free(holes.items)
            raise
        if (holes.size == 1 and holes.items[0].begin == ticket.offset
                and holes.items[0].end == ticket.end):
            free(holes.items)
            return 0
        ticket.holes = holes.items
        ticket.hole_count = holes.size
        return 0

    cdef int64_t supersede(self, Ticket ticket, Py_ssize_t* count) except -1:
        # Before `ticket`, a write, is added: behind the youngest write of its page that can't be
        # withdrawn any more, those that lie within it are not needed. Returns the bytes that were
        # let go, and of how many.
        cdef Writes writes = self.writes
        cdef int64_t page = page_of(ticket.offset), size = 0
        cdef uint32_t entry, below
        cdef Ticket young, old
        cdef int steps = 0
        if ticket.end == ticket.offset or page_of(ticket.end - 1) != page:
            return 0
        entry = youngest(&writes.index, page)
        # Whoever writes in a loop still has the last ticket in a variable.
        while entry != NONE and not is_settled(writes, entry) and steps < MAX_STEPS:
            entry = writes.index.entries[entry].older
            steps += 1
        if entry == NONE or steps == MAX_STEPS:
            return 0
        young = <Ticket>writes.tickets.items[writes.index.entries[entry].write]
        below = writes.index.entries[entry].older
        while below != NONE and is_settled(writes, below):
            old = <Ticket>writes.tickets.items[writes.index.entries[below].write]
            if (old.offset < young.offset or old.end > young.end
                    or page_of(old.offset) != page_of(old.end - 1)):
                break
            writes.tickets.items[writes.index.entries[below].write] = NULL
            Py_DECREF(old)
            size += old.end - old.offset
            count[0] += 1
            below = writes.index.entries[below].older
        writes.index.entries[entry].older = below
        writes.bytes -= size
        return size


cdef inline bint is_settled(Writes writes, uint32_t entry) noexcept:
    # Whether nobody can withdraw it, or ask what became of it.
    cdef PyObject* ticket = writes.tickets.items[writes.index.entries[entry].write]
    return (<Ticket>ticket).state == HELD and not is_observed(ticket)


cdef int copy_page(Ticket ticket, Writes writes, Spans* left) except -1:
    # What one generation has of the spans in `left`, all within one page: copied and cut off.
    cdef Walk walk
    cdef uint32_t place
    cdef Py_ssize_t i, n
    cdef Span span
    cdef int64_t begin, end
    cdef Ticket write
    if writes is None or left.size == 0:
        return 0
    begin_walk(&walk, &writes.index, page_of(left.items[0].begin))
    while left.size:
        place = next_write(&walk)
        if place == NONE:
            return 0
        write = <Ticket>writes.tickets.items[place]
        if write.state == CANCELLED:
            continue
        i, n = 0, left.size
        while i < n:
            span = left.items[i]
            begin = max(span.begin, write.offset)
            end = min(span.end, write.end)
            if begin >= end:
                i += 1
                continue
            memcpy(ticket.memory + (begin - ticket.offset), write.memory + (begin - write.offset),
                   end - begin)
            write.seen = True
            n -= 1
            left.items[i] = left.items[n]           # what is cut off goes behind the others
            left.items[n] = left.items[left.size - 1]
            left.size -= 1
            if span.begin < begin:
                add_span(left, span.begin, begin)
            if end < span.end:
                add_span(left, end, span.end)
    return 0


cdef int take_over(Spans* holes, Spans* left) except -1:
    # The holes of a page, ascending; one that goes on where the last ended is a part of it.
    cdef Py_ssize_t i, k
    cdef Span span
    for i in range(1, left.size):
        span = left.items[i]
        k = i
        while k and left.items[k - 1].begin > span.begin:
            left.items[k] = left.items[k - 1]
            k -= 1
        left.items[k] = span
    for i in range(left.size):
        if holes.size and holes.items[holes.size - 1].end == left.items[i].begin:
            holes.items[holes.size - 1].end = left.items[i].end
        else:
            add_span(holes, left.items[i].begin, left.items[i].end)
    return 0
