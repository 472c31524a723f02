# Calls of many requests on one file, past the window.

from ._arguments cimport Buffer, Ranges
from ._backend cimport Kind
from ._desk cimport FileDesk


cdef class BulkDesk(FileDesk):
    # Around each call: whether it is allowed, and what is to be done when the last one is over.
    cdef int enter(self, Kind kind) except -1
    cdef int leave(self) except -1


cdef Ranges ranges_of_data(object offsets, object data, object lengths, Buffer memory)
