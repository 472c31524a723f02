"""GIL: a thread that submits in a loop keeps it for 5 ms at a time (sys.getswitchinterval), fifty
times what an I/O takes. So who comes back from I/O asks for it, and the next submit gives way.

CPython alone would not do that: a thread that lets go of the GIL for a moment mostly has it again
before another one has woken up. Here it stands aside until nobody asks, GIVE_WAY_NS at most.

Who may call: any thread. The count is atomic, and the process's: so is the GIL. In a forked child
nobody asks: those who did are the parent's.
"""

from libc.stdint cimport int64_t, uint32_t

from ._system cimport iolift_add, iolift_load_acquire, iolift_now_ns

cdef extern from "<pthread.h>" nogil:
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil,
                       void (*child)() noexcept nogil)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    GIVE_WAY_NS = 1000000

cdef uint32_t asking = 0


cdef void ask_for_gil() noexcept nogil:
    iolift_add(&asking, 1)


cdef void have_gil() noexcept nogil:
    iolift_add(&asking, -1)


cdef void give_way() noexcept:
    cdef int64_t until
    if iolift_load_acquire(&asking) == 0:
        return
    until = iolift_now_ns() + GIVE_WAY_NS
    with nogil:
        while iolift_load_acquire(&asking) and iolift_now_ns() < until:
            sched_yield()


cdef void forget_the_parents() noexcept nogil:
    global asking
    asking = 0


pthread_atfork(NULL, NULL, forget_the_parents)
