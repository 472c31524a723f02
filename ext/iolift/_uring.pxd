from ._backend cimport Backend


cdef class UringBackend(Backend):
    pass
