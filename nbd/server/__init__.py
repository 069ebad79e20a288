"""The NBD server: offers block devices to clients.

Takes listening sockets and a source of exports, and serves requests. Parsers and replies are
sans-IO: bytes in, requests out; only the connection touches a socket.
"""
