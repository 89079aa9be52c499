"""``prm-edge serve``: a package over HTTP, for many clients at once.

A request is read and checked on the event loop, waits in a fair and bounded queue, and runs in one
thread that has the model. Needs the extra ``serve``; nothing here is imported before it is asked
for::

    run       the process: socket, signals, drain   connections  how many, and how long mute
    app       routes and what each one does         guard        what every request passes through
    intake    bodies, within their limits           bodies       from bytes to checked values
    queue     who is next, fairly, within bounds    worker       batches from the queue to the model
    backend   the only module that knows a Scorer   sessions     live solutions, caps and expiry
    keys, limits, logs, metrics, refusals           openapi, page  what clients are promised
"""
