"""Outcomes: the bytes each request got, or its error, and who must be asked again.

A batch in which all goes well never gets here. Of several answers to one request (it may have been
carried by several I/Os) an error stands before a short read, and the shortest read before others.
"""

from libc.stdint cimport INT64_MAX, int64_t, uint32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memset

from ._request cimport Request
from ._scatter cimport Chunk, Rows
from ._sort cimport sort_by_index


cdef int need_items(Outcome* outcome) noexcept nogil:
    cdef Py_ssize_t i
    if outcome.items == NULL:
        outcome.items = <int64_t*>malloc(outcome.n * sizeof(int64_t))
        if outcome.items == NULL:
            outcome.out_of_memory = True
            return -1
        for i in range(outcome.n):
            outcome.items[i] = INT64_MAX
    return 0


cdef void note_end_of_file(Outcome* outcome, const Request* requests, const Rows* rows,
                           const Chunk* chunk, int64_t end_of_file) noexcept nogil:
    cdef uint32_t i
    cdef int64_t got, index
    if need_items(outcome) < 0:
        return
    for i in range(chunk.lo, chunk.hi):
        if requests[i].offset >= chunk.end:
            break
        if requests[i].end > end_of_file:
            # Not from its offset here: it may be a part of what was asked.
            index = requests[i].index
            got = max(<int64_t>0, end_of_file - rows.offsets[index])
            outcome.items[index] = min(outcome.items[index], got)


cdef void note_error(Outcome* outcome, int64_t index, int error) noexcept nogil:
    if need_items(outcome) == 0 and outcome.items[index] >= 0:
        outcome.items[index] = -error


cdef int add_failure(Failures* failures, Failure failure) noexcept nogil:
    cdef Py_ssize_t room
    cdef Failure* items
    if failures.size == failures.room:
        room = max(16, 2 * failures.room)
        items = <Failure*>realloc(failures.items, room * sizeof(Failure))
        if items == NULL:
            return -1
        failures.items = items
        failures.room = room
    failures.items[failures.size] = failure
    failures.size += 1
    return 0


cdef void free_failures(Failures* failures) noexcept nogil:
    free(failures.items)
    free(failures.reach)
    memset(failures, 0, sizeof(Failures))


cdef Request* parts_of_reads(const Failures* failures, Py_ssize_t k, const Request* requests,
                             Py_ssize_t* count) noexcept nogil:
    return cut_parts(&failures.items[k], requests, failures.items[k].lo, failures.items[k].hi,
                     count)


cdef Request* parts_of_writes(Failures* failures, Py_ssize_t k, const Request* requests,
                              Py_ssize_t n, Py_ssize_t* count) noexcept nogil:
    # requests: all n of the batch, by offset, also those whose bytes younger ones cover.
    cdef Py_ssize_t lo = first_reaching(failures, requests, n, failures.items[k].begin)
    cdef Request* parts = NULL
    if lo >= 0:
        parts = cut_parts(&failures.items[k], requests, lo, n, count)
    if parts != NULL:
        sort_by_index(parts, count[0])
    return parts


cdef Request* cut_parts(const Failure* failure, const Request* requests, Py_ssize_t lo,
                        Py_ssize_t hi, Py_ssize_t* count) noexcept nogil:
    cdef Py_ssize_t i, room = 0
    cdef Request* parts
    while lo + room < hi and requests[lo + room].offset < failure.end:
        room += 1
    parts = <Request*>malloc(max(1, room) * sizeof(Request))
    if parts == NULL:
        return NULL
    count[0] = 0
    for i in range(lo, lo + room):
        if requests[i].end > failure.begin:
            parts[count[0]] = Request(max(requests[i].offset, failure.begin),
                                      min(requests[i].end, failure.end), requests[i].index)
            count[0] += 1
    return parts


cdef Py_ssize_t first_reaching(Failures* failures, const Request* requests, Py_ssize_t n,
                               int64_t position) noexcept nogil:
    # The first request, by offset, that some end past `position` comes with. -1: out of memory.
    cdef Py_ssize_t lo = 0, hi = n, middle, i
    if failures.reach == NULL:
        failures.reach = <int64_t*>malloc(max(1, n) * sizeof(int64_t))
        if failures.reach == NULL:
            return -1
        for i in range(n):
            failures.reach[i] = max(requests[i].end, failures.reach[i - 1] if i else 0)
    while lo < hi:
        middle = (lo + hi) // 2
        if failures.reach[middle] > position:
            hi = middle
        else:
            lo = middle + 1
    return lo
