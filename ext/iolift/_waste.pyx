"""The bound on waste: bytes read for gaps <= max_waste x bytes asked, for each batch.

The narrowest holes are worth the most, an I/O saved for few bytes, so they are taken first: the
answer is the widest gap for which all holes up to that width together stay within the budget.
O(n) when all of them do, O(n log n) otherwise.
"""

from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc, qsort

from ._plan cimport Rule
from ._request cimport Request, align_down, align_up


cdef int64_t next_hole(const Request* request, const Rule* rule, int64_t* previous,
                       int64_t* covered) noexcept nogil:
    # The hole, in bytes, before `request`; 0 where the plan begins anew or goes on without one.
    cdef int64_t begin = align_down(request.offset, rule.alignment)
    cdef int64_t hole = begin - covered[0]
    if request.offset < previous[0] or covered[0] < 0:
        hole = 0                            # only in fifo order, or the first one
        covered[0] = 0
    previous[0] = request.offset
    covered[0] = max(covered[0], align_up(request.end, rule.alignment))
    return max(hole, <int64_t>0)


cdef int compare(const void* a, const void* b) noexcept nogil:
    cdef int64_t x = (<int64_t*>a)[0], y = (<int64_t*>b)[0]
    return (x > y) - (x < y)


cdef int64_t widest_within(int64_t* holes, Py_ssize_t n, double budget) noexcept nogil:
    cdef Py_ssize_t i = 0, k
    cdef double sum = 0
    cdef int64_t widest = 0
    qsort(holes, n, sizeof(int64_t), compare)
    while i < n:
        k = i
        while k < n and holes[k] == holes[i]:
            k += 1
        sum += <double>holes[i] * (k - i)   # all of one width, or none
        if sum > budget:
            break
        widest = holes[i]
        i = k
    return widest


cdef int64_t affordable_gap(const Request* requests, Py_ssize_t n, const Rule* rule,
                            double max_waste) noexcept nogil:
    cdef int64_t previous = 0, covered = -1, hole, gap
    cdef double asked = 0, wasted = 0
    cdef Py_ssize_t i, count = 0
    cdef int64_t* holes
    if rule.gap == 0:
        return 0
    for i in range(n):
        asked += requests[i].end - requests[i].offset
        hole = next_hole(&requests[i], rule, &previous, &covered)
        if 0 < hole <= rule.gap:
            wasted += hole
            count += 1
    if count == 0:
        return 0
    if wasted <= asked * max_waste:
        return rule.gap
    holes = <int64_t*>malloc(count * sizeof(int64_t))
    if holes == NULL:
        return -1
    previous, covered, count = 0, -1, 0
    for i in range(n):
        hole = next_hole(&requests[i], rule, &previous, &covered)
        if 0 < hole <= rule.gap:
            holes[count] = hole
            count += 1
    gap = widest_within(holes, count, asked * max_waste)
    free(holes)
    return gap
