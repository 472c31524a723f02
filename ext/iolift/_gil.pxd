# Who comes back from I/O for the GIL is let in by whoever makes requests in a row.

# The last thing without it ...
cdef void ask_for_gil() noexcept nogil
# ... and the first thing with it.
cdef void have_gil() noexcept nogil
# With it, where nothing has been decided yet: others may come in.
cdef void give_way() noexcept
