from libc.stdint cimport uint32_t

from ._backend cimport Backend, Lane, Operation

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass


cdef struct Queue:
    # A lane's operations. Everything in it is guarded by Pool.mutex.
    Operation* pending          # waiting for a thread, oldest first
    Operation* pending_tail
    Operation* finished         # latest first
    Py_ssize_t finished_count
    Py_ssize_t outstanding      # submitted, not yet reaped
    Py_ssize_t wanted           # the owner sleeps until so many are finished; 0: it doesn't
    Queue* next_ready           # in Pool.ready
    bint is_ready               # is in Pool.ready
    bint is_slow                # its last operation took long enough to call for help
    pthread_cond_t done


cdef struct Pool:
    pthread_mutex_t mutex
    pthread_cond_t work
    Queue* ready                # queues with pending operations, served in turn
    Queue* ready_tail
    pthread_t* threads
    int thread_count
    int max_threads
    int idle                    # threads that sleep on `work`
    bint stopping


cdef class PosixLane(Lane):
    cdef PosixBackend backend
    cdef Queue queue


cdef class PosixBackend(Backend):
    cdef Pool* pool
    cdef uint32_t generation        # of forks, at the start
