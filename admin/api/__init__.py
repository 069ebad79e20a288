"""The control API: both ends of its socket, the values on it, and the interfaces it serves.

Takes HTTP requests of the command line, and answers them with the pool, the NBD server, the
scheduler and the scrubs. It knows these by Protocols, and the pool's operations by
`storage.volumes.management`.
"""
