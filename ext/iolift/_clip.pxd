# Of overlapping writes only the last one's bytes are written. Pure.

from ._request cimport Request


cdef Py_ssize_t keep_last(const Request* requests, Py_ssize_t n, Request** pieces) noexcept nogil
