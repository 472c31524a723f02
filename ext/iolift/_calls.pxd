# How deep each thread is in calls of the core.

cdef void begin_call() noexcept nogil
cdef void end_call() noexcept nogil
# In a call of something that another call called back.
cdef bint is_nested() noexcept nogil
# Around what is called back: the count is 0 meanwhile.
cdef int step_out() noexcept nogil
cdef void step_in(int calls) noexcept nogil
# In place of PyErr_CheckSignals.
cdef int hear_signals() except -1
