"""The NBD server: offers block devices to clients.

The room takes listening sockets and a source of exports, and serves requests. Parsers and replies
are sans-IO: bytes in, requests out; the connection and its session do the I/O.
"""
