"""Which bytes of which write survive, when writes of one batch overlap.

1. The pieces are disjoint, ascending, and cover exactly the union of the requests.
2. Each byte belongs to the request with the highest index among those that cover it: the state
   that executing them one by one would leave.

A sweep over the begins and ends with a heap of the writes that cover the current position, the
youngest on top: O(n log k) for at most k writes over one byte, O(n) when none overlap.
"""

from libc.stdint cimport INT64_MAX, int64_t
from libc.stdlib cimport free, realloc

from ._request cimport Request


cdef struct Sweep:
    const Request** heap        # the youngest first; those that ended are dropped when they surface
    Py_ssize_t heap_size
    Py_ssize_t heap_room
    Request* pieces
    Py_ssize_t size
    Py_ssize_t room


cdef int push(Sweep* sweep, const Request* request) noexcept nogil:
    cdef Py_ssize_t at, parent
    cdef const Request** heap
    if sweep.heap_size == sweep.heap_room:
        sweep.heap_room = max(16, 2 * sweep.heap_room)
        heap = <const Request**>realloc(sweep.heap, sweep.heap_room * sizeof(Request*))
        if heap == NULL:
            return -1
        sweep.heap = heap
    at = sweep.heap_size
    sweep.heap_size += 1
    while at:
        parent = (at - 1) // 2
        if sweep.heap[parent].index > request.index:
            break
        sweep.heap[at] = sweep.heap[parent]
        at = parent
    sweep.heap[at] = request
    return 0


cdef void pop(Sweep* sweep) noexcept nogil:
    cdef const Request** heap = sweep.heap
    cdef Py_ssize_t at = 0, child = 1
    sweep.heap_size -= 1
    cdef const Request* moving = heap[sweep.heap_size]
    while child < sweep.heap_size:
        if child + 1 < sweep.heap_size and heap[child + 1].index > heap[child].index:
            child += 1
        if moving.index > heap[child].index:
            break
        heap[at] = heap[child]
        at = child
        child = 2 * at + 1
    heap[at] = moving


cdef int emit(Sweep* sweep, int64_t offset, int64_t end, int64_t index) noexcept nogil:
    cdef Request* last = &sweep.pieces[sweep.size - 1] if sweep.size else NULL
    cdef Request* pieces
    if last != NULL and last.index == index and last.end == offset:
        last.end = end
        return 0
    if sweep.size == sweep.room:
        sweep.room = max(64, sweep.room + sweep.room // 2)
        pieces = <Request*>realloc(sweep.pieces, sweep.room * sizeof(Request))
        if pieces == NULL:
            return -1
        sweep.pieces = pieces
    sweep.pieces[sweep.size] = Request(offset, end, index)
    sweep.size += 1
    return 0


cdef int sweep_over(Sweep* sweep, const Request* requests, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i = 0
    cdef int64_t position = 0, until
    cdef const Request* top
    while i < n or sweep.heap_size:
        if sweep.heap_size == 0:
            # The common cases need no heap: nothing overlaps, or the next is the same but younger.
            if i + 1 == n or requests[i].end <= requests[i + 1].offset:
                if emit(sweep, requests[i].offset, requests[i].end, requests[i].index) < 0:
                    return -1
                i += 1
                continue
            if (requests[i].offset == requests[i + 1].offset
                    and requests[i].end == requests[i + 1].end):
                i += 1
                continue
            position = requests[i].offset
        while i < n and requests[i].offset <= position:
            if push(sweep, &requests[i]) < 0:
                return -1
            i += 1
        top = sweep.heap[0]
        if top.end <= position:
            pop(sweep)
            continue
        until = min(top.end, requests[i].offset if i < n else INT64_MAX)
        if emit(sweep, position, until, top.index) < 0:
            return -1
        position = until
    return 0


cdef bint is_disjoint(const Request* requests, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(1, n):
        if requests[i].offset < requests[i - 1].end:
            return False
    return True


cdef Py_ssize_t keep_last(const Request* requests, Py_ssize_t n, Request** pieces) noexcept nogil:
    # requests: sorted by offset, then index where offset and end agree. Returns how many pieces
    # there are; *pieces is NULL when they are the requests themselves, else free() is the
    # caller's. -1: out of memory.
    cdef Sweep sweep
    pieces[0] = NULL
    if is_disjoint(requests, n):
        return n
    sweep = Sweep(NULL, 0, 0, NULL, 0, 0)
    if sweep_over(&sweep, requests, n) < 0:
        free(sweep.pieces)
        sweep.size = -1
    else:
        pieces[0] = sweep.pieces
    free(sweep.heap)
    return sweep.size
