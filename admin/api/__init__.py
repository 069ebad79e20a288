"""The control API: both ends of its socket, the values on it, and the interfaces it serves.

Takes HTTP requests of the command line, and gives answers of the pool, the NBD server, the
scheduler and the scrub, which it knows by Protocols alone.
"""
