from ._backend cimport Backend, Lane


cdef class HostedBackend(Backend):
    cdef object host
    cdef object lock
    cdef dict owners            # token -> (lane, address of the operation)
    cdef object token
