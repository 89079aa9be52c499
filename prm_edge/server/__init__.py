"""``prm-edge serve``: a package over HTTP, for many clients at once.

A request is read and checked on the event loop, waits in a fair and bounded queue, and runs in one
thread that has the model. Needs the extra ``serve``; nothing here is imported before it is asked
for::

    run      the process: socket, signals, drain
    app      routes and what each one does          guard    what every request passes through
    bodies   requests: bytes to checked values      queue    who is next, fairly, within bounds
    worker   batches out of the queue to the model  backend  the only module that knows the Scorer
    sessions live solutions, their caps and expiry  keys, limits, logs, metrics, openapi, refusals
"""
