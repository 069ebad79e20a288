"""NBD: the wire protocol without I/O, a server for block devices, and a client that is one."""
