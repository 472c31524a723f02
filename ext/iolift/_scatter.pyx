"""Scatter and gather: which memory an I/O moves its bytes to or from.

Requests are in planning order, so within an extent they ascend by offset. Going through them with
`covered`, the first position that no request so far has reached, each one splits in two:

         covered
            |
    ========|                  the owner: the request that reached `covered`
        ----|======            the next one: its head [offset, covered) is in the owner's row,
     ============|====         its rest [covered, end) is its own segment of the I/O

1. Each byte of a chunk is read into exactly one place: a row, or the bin (scratch, bounce).
2. A head is one copy from the owner's row, which is complete when its turn comes. So duplicates,
   overlaps and chains of them cost one pass and no memory.
3. With O_DIRECT only whole blocks that sit right in memory go straight; the ragged rest of a chunk
   goes through its bounce buffer. Both passes (before and after the I/O) take the same decisions,
   in `direct_span`.
"""

from libc.stdint cimport int64_t, uint32_t, uintptr_t
from libc.string cimport memcpy

from ._backend cimport MAX_SEGMENTS
from ._request cimport Request, align_down, align_up


cdef inline void add_segment(Chunk* chunk, char* memory, int64_t length) noexcept nogil:
    chunk.segments[chunk.segment_count].iov_base = memory
    chunk.segments[chunk.segment_count].iov_len = length
    chunk.segment_count += 1


cdef void next_chunk(const Request* requests, const Rows* rows, const Layout* layout,
                     Cursor* cursor, Chunk* chunk) noexcept nogil:
    # Takes a chunk off the extent at `cursor`; cursor.position == cursor.end when it was the last.
    chunk.begin = cursor.position
    chunk.lo = cursor.lo
    chunk.hi = cursor.hi
    chunk.segment_count = 0
    chunk.shared = False
    if layout.alignment > 1:
        fill_direct(requests, rows, layout, cursor, chunk)
    else:
        fill_buffered(requests, rows, layout, cursor, chunk)


cdef void fill_buffered(const Request* requests, const Rows* rows, const Layout* layout,
                        Cursor* cursor, Chunk* chunk) noexcept nogil:
    cdef int64_t limit = chunk.begin + min(cursor.end - chunk.begin, MAX_CHUNK_BYTES)
    cdef int64_t covered = chunk.begin, start, stop, hole
    cdef uint32_t i = cursor.lo
    cdef const Request* request
    while i < cursor.hi and requests[i].offset < cursor.end:
        request = &requests[i]
        chunk.shared |= request.offset < covered and covered > chunk.begin
        if request.end > covered:
            start = max(request.offset, covered)
            hole = (start - covered + SCRATCH_BYTES - 1) // SCRATCH_BYTES
            if start >= limit or chunk.segment_count + hole + 1 > MAX_SEGMENTS:
                # The hole before `start`, if there is one, need not be read after all.
                chunk.end = covered
                cursor.position = start
                cursor.lo = i
                return
            while covered < start:
                add_segment(chunk, layout.scratch, min(start - covered, SCRATCH_BYTES))
                covered = min(start, covered + SCRATCH_BYTES)
            stop = min(request.end, limit)
            add_segment(chunk, locate(rows, request, start), stop - start)
            covered = stop
            if stop < request.end and stop < cursor.end:
                chunk.end = cursor.position = stop
                cursor.lo = i
                return
        i += 1
    chunk.end = covered
    cursor.position = cursor.end


cdef inline bint direct_span(const Rows* rows, const Layout* layout, const Request* request,
                             int64_t start, int64_t stop, int64_t* begin,
                             int64_t* end) noexcept nogil:
    # The blocks of [start, stop) that the device may move straight to or from the row.
    begin[0] = align_up(start, layout.alignment)
    end[0] = min(align_down(stop, layout.alignment), layout.straight_end)
    return (begin[0] < end[0] and
            <uintptr_t>locate(rows, request, begin[0]) % layout.memory_alignment == 0)


cdef void fill_direct(const Request* requests, const Rows* rows, const Layout* layout,
                      Cursor* cursor, Chunk* chunk) noexcept nogil:
    cdef int64_t limit = chunk.begin + min(cursor.end - chunk.begin, MAX_CHUNK_BYTES)
    cdef int64_t covered = chunk.begin, start, stop, begin = 0, end = 0
    cdef int64_t device = chunk.begin       # everything before it has its segment
    cdef int64_t room = BOUNCE_BYTES
    cdef uint32_t i = cursor.lo
    cdef const Request* request
    chunk.end = limit
    while i < cursor.hi and requests[i].offset < limit:
        request = &requests[i]
        start = max(request.offset, covered)
        stop = min(request.end, limit)
        chunk.shared |= request.offset < covered and covered > chunk.begin
        i += 1
        if stop <= covered:
            continue
        if chunk.segment_count + 3 > MAX_SEGMENTS:
            chunk.end = device
            break
        if direct_span(rows, layout, request, start, stop, &begin, &end):
            if begin - device > room:
                chunk.end = device + room
                break
            if begin > device:
                add_segment(chunk, chunk.bounce + BOUNCE_BYTES - room, begin - device)
                room -= begin - device
                chunk.shared = True
            add_segment(chunk, locate(rows, request, begin), end - begin)
            device = end
        elif align_up(stop, layout.alignment) - device > room:
            chunk.end = device + room
            break
        covered = stop
    if chunk.end > device:
        # `limit` may lie in a hole that is wider than what is left to bounce.
        chunk.end = device + min(chunk.end - device, room)
        add_segment(chunk, chunk.bounce + BOUNCE_BYTES - room, chunk.end - device)
        chunk.shared = True
    cursor.position = chunk.end
    while cursor.lo < cursor.hi and requests[cursor.lo].end <= chunk.end:
        cursor.lo += 1


cdef enum Direction:
    TO_ROW
    TO_BOUNCE


cdef inline void copy_bounce(char* bounce, char* row, int64_t length,
                             Direction direction) noexcept nogil:
    if length > 0:
        if direction == TO_ROW:
            memcpy(row, bounce, length)
        else:
            memcpy(bounce, row, length)


cdef void walk_bounce(const Rows* rows, const Layout* layout, const Chunk* chunk,
                      const Request* request, int64_t start, int64_t stop, int64_t until,
                      int64_t* device, char** bounce, Direction direction) noexcept nogil:
    # The request's own part [start, stop) of the chunk: copies what is not moved straight.
    # *bounce is where position *device has, or would have, its byte.
    cdef int64_t begin = 0, end = 0
    if direct_span(rows, layout, request, start, stop, &begin, &end):
        copy_bounce(bounce[0] + (start - device[0]), locate(rows, request, start),
                    min(begin, until) - start, direction)
        bounce[0] += begin - device[0]
        device[0] = start = end
    copy_bounce(bounce[0] + (start - device[0]), locate(rows, request, start),
                min(stop, until) - start, direction)


cdef void settle_read(const Request* requests, const Rows* rows, const Layout* layout,
                      const Chunk* chunk, int64_t until) noexcept nogil:
    # After the I/O: gives every request the bytes before `until` that did not land in its row.
    cdef int64_t covered = chunk.begin, device = chunk.begin, start, stop
    cdef char* bounce = chunk.bounce
    cdef const Request* owner = NULL
    cdef const Request* request
    cdef uint32_t i
    if not chunk.shared:
        return
    for i in range(chunk.lo, chunk.hi):
        request = &requests[i]
        if request.offset >= chunk.end:
            break
        start = max(request.offset, chunk.begin)
        stop = min(request.end, chunk.end)
        if start >= stop:
            continue
        if start < covered:
            if start < min(covered, min(stop, until)):
                memcpy(locate(rows, request, start), locate(rows, owner, start),
                       min(covered, min(stop, until)) - start)
            start = covered
        if stop > covered:
            if layout.alignment > 1:
                walk_bounce(rows, layout, chunk, request, start, stop, until, &device, &bounce,
                            TO_ROW)
            owner = request
            covered = stop


cdef void prepare_write(const Request* requests, const Rows* rows, const Layout* layout,
                        const Chunk* chunk) noexcept nogil:
    # Before the I/O: fills the bounce buffer. Pieces of a write never overlap.
    cdef int64_t device = chunk.begin, start, stop
    cdef char* bounce = chunk.bounce
    cdef uint32_t i
    if not chunk.shared or layout.alignment == 1:
        return
    for i in range(chunk.lo, chunk.hi):
        start = max(requests[i].offset, chunk.begin)
        stop = min(requests[i].end, chunk.end)
        if requests[i].offset >= chunk.end:
            break
        if start < stop:
            walk_bounce(rows, layout, chunk, &requests[i], start, stop, stop, &device, &bounce,
                        TO_BOUNCE)
