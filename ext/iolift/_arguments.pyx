"""The boundary between Python arguments and the C core.

Every array, offset, length and option that a caller passes comes through here, once, before
anything is held or moved. What leaves is contiguous int64 data that keeps the promise stated in
the .pxd; what is refused is refused with the name of the argument, the index and the value.
"""

import operator

import numpy as np

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer,
)
from cpython.long cimport PyLong_AsLongLongAndOverflow
from libc.stdint cimport INT64_MAX, int64_t

from ._system cimport iolift_now_ns


cdef class Int64Array:
    def __cinit__(self, object values, str name, bint snapshot):
        cdef object array = np.asarray(values)
        if array.ndim != 1:
            raise TypeError(f"{name} must be one-dimensional, not {array.ndim}-dimensional")
        if array.size == 0 and not isinstance(values, np.ndarray):
            array = np.empty(0, np.int64)           # np.asarray([]) would be float64
        if array.dtype.kind == "O" or (array.dtype.kind == "f" and array is not values):
            # numpy's answer to integers that no one type of its own can hold
            _refuse_huge(np.asarray(values, dtype=object), name)
        if array.dtype.kind not in "iu":
            raise TypeError(f"{name} must be integers, not {array.dtype}")
        if array.dtype.kind == "u" and array.dtype.itemsize == 8:
            _refuse_huge(array, name)
        array = np.ascontiguousarray(array, dtype=np.int64)
        self.view = array.copy() if snapshot and np.may_share_memory(array, values) else array
        self.size = self.view.shape[0]
        self.data = &self.view[0] if self.size else NULL


def _refuse_huge(array, name):
    # uint64 and Python's big integers are the types that can hold more than off_t can.
    huge = range(array.size) if array.dtype.kind == "O" else np.flatnonzero(array > INT64_MAX)
    for index in huge:
        value = array[index]
        if isinstance(value, (int, np.integer)) and not -INT64_MAX - 1 <= value <= INT64_MAX:
            raise ValueError(f"{name}[{index}] = {value} does not fit in a file: "
                             f"offsets and lengths end at 2**63-1")


cdef class Ranges:
    def __cinit__(self, object offsets, object lengths, bint snapshot):
        self.offset_array = Int64Array(offsets, "offsets", snapshot)
        self.offsets = self.offset_array.data
        self.n = self.offset_array.size
        self.lengths = NULL
        if np.ndim(lengths) == 0:
            self.length = parse_int(lengths, "lengths", 0, INT64_MAX)
        else:
            self.length_array = Int64Array(lengths, "lengths", snapshot)
            if self.length_array.size != self.n:
                raise ValueError(f"offsets and lengths differ in size: "
                                 f"{self.n} and {self.length_array.size}")
            take_lengths(self)
        check(self)


cdef void take_lengths(Ranges self) noexcept:
    # An array of equal lengths is planned as one length: the sort then never looks back.
    cdef const int64_t* lengths = self.length_array.data
    cdef Py_ssize_t i
    self.length = lengths[0] if self.n else 0
    for i in range(self.n):
        if lengths[i] != self.length:
            self.lengths = lengths
            return


cdef int check(Ranges self) except -1:
    cdef Py_ssize_t i
    cdef int64_t highest = 0, lowest = 0, total = 0, length = self.length
    cdef bint good = True
    with nogil:
        if self.lengths == NULL:
            # Branch-free, so that it costs next to nothing when all is well.
            for i in range(self.n):
                highest = max(highest, self.offsets[i])
                lowest = min(lowest, self.offsets[i])
            good = lowest >= 0 and length >= 0 and highest <= INT64_MAX - length
            good = good and (self.n == 0 or length <= INT64_MAX // self.n)
            total = length * self.n if good else 0
        else:
            for i in range(self.n):
                length = self.lengths[i]
                if (self.offsets[i] < 0 or length < 0 or self.offsets[i] > INT64_MAX - length
                        or total > INT64_MAX - length):
                    good = False
                    break
                total += length
    if not good:
        refuse(self)
    self.total = total
    return 0


cdef object refuse(Ranges self):
    # Slow and sure: Python's integers don't overflow.
    total = 0
    for i in range(self.n):
        offset = self.offsets[i]
        length = length_of(self, i)
        total += length
        if offset < 0:
            raise ValueError(f"offsets[{i}] = {offset} is negative")
        if length < 0:
            raise ValueError(f"lengths[{i}] = {length} is negative")
        if offset + length > INT64_MAX:
            raise ValueError(f"offsets[{i}] + lengths[{i}] = {offset} + {length} is past 2**63-1")
        if total > INT64_MAX:
            raise ValueError(f"lengths[{i}] = {length}: the sum of the lengths is past 2**63-1")


cdef Ranges parse_ranges(object offsets, object lengths, bint snapshot):
    return Ranges(offsets, lengths, snapshot)


cdef int64_t parse_int(object value, str name, int64_t lowest, int64_t highest) except? -1:
    cdef int overflow = 0
    cdef long long small
    if type(value) is int:
        small = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow == 0 and lowest <= small <= highest:
            return small
    return parse_any_int(value, name, lowest, highest)


cdef int64_t parse_any_int(object value, str name, int64_t lowest, int64_t highest) except? -1:
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None
    if not lowest <= number <= highest:
        raise ValueError(f"{name} = {number} must be between {lowest} and {highest}")
    return number


cdef class Buffer:
    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)


cdef Buffer take_buffer(object source, str name, bint writable):
    cdef Buffer buffer = Buffer.__new__(Buffer)
    if not PyObject_CheckBuffer(source):
        raise TypeError(f"{name} must be an object with a buffer, not {type(source).__name__}")
    try:
        PyObject_GetBuffer(source, &buffer.view,
                           PyBUF_C_CONTIGUOUS | (PyBUF_WRITABLE if writable else 0))
    except (BufferError, ValueError) as error:
        view = memoryview(source)
        why = "is read-only" if writable and view.readonly else (
            str(error) if view.c_contiguous else "is not C-contiguous")
        raise ValueError(f"{name} {why}") from None
    buffer.held = True
    return buffer


cdef list take_buffers(object buffers, bint writable):
    if isinstance(buffers, (bytes, bytearray, memoryview)):
        raise TypeError(f"buffers must be a sequence of buffers, not {type(buffers).__name__}")
    return [take_buffer(buffer, f"buffers[{i}]", writable) for i, buffer in enumerate(buffers)]


cdef int64_t parse_timeout(object seconds) except -1:
    if seconds is None:
        return INT64_MAX
    return iolift_now_ns() + <int64_t>(min(max(float(seconds), 0.0), 1e9) * 1e9)


cdef int64_t parse_position(object offset, int64_t size) except -1:
    cdef int64_t position = parse_int(offset, "offset", 0, INT64_MAX)
    if size > INT64_MAX - position:
        raise ValueError(f"offset + length = {position} + {size} is past 2**63-1")
    return position
