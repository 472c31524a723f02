# One group of the log, from the line of what has gathered to its end.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from ._log cimport Log, Receipt, ReceiptState


cdef bint needs_segment(Log self) except -1
cdef int64_t take_group(Log self) except -1
cdef void encode_group(Log self, PyObject** receipts, Py_ssize_t n, int64_t size) noexcept nogil
cdef int write_group(Log self, int64_t size) noexcept nogil
cdef bint go_direct(int descriptor) noexcept
cdef int end_group(Log self, int64_t size, int result) except -1
cdef int forget_key(Log self, Receipt receipt) except -1
cdef void fail(object receipts, ReceiptState state, object cause) noexcept
cdef int refuse(Log self, object cause) except -1
cdef int poison(Log self, object cause) except -1
cdef void refuse_gathered(Log self, object cause) noexcept
