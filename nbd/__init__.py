"""NBD: the wire protocol without I/O, and a server that offers block devices over it."""
