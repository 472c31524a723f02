# What became of each request. Pure.

from libc.stdint cimport int64_t, uint32_t

from ._request cimport Request
from ._scatter cimport Chunk, Rows


cdef struct Outcome:
    int64_t* items              # by index: bytes, or -errno; NULL while all got all they asked
    Py_ssize_t n
    bint out_of_memory


cdef struct Failure:
    # A stretch of the file whose merged I/O failed; each of its requests gets its own answer.
    int64_t begin
    int64_t end
    uint32_t lo
    uint32_t hi
    int error


cdef struct Failures:
    Failure* items
    Py_ssize_t size
    Py_ssize_t room
    int64_t* reach              # of requests: the highest end so far; made when first needed


cdef void note_end_of_file(Outcome* outcome, const Request* requests, const Rows* rows,
                           const Chunk* chunk, int64_t end_of_file) noexcept nogil
cdef void note_error(Outcome* outcome, int64_t index, int error) noexcept nogil
cdef int add_failure(Failures* failures, Failure failure) noexcept nogil
cdef void free_failures(Failures* failures) noexcept nogil

# The requests that have bytes in the stretch of failure k, cut to it: reads by offset, writes by
# index. To be freed by the caller; NULL when out of memory.
cdef Request* parts_of_reads(const Failures* failures, Py_ssize_t k, const Request* requests,
                             Py_ssize_t* count) noexcept nogil
cdef Request* parts_of_writes(Failures* failures, Py_ssize_t k, const Request* requests,
                              Py_ssize_t n, Py_ssize_t* count) noexcept nogil
