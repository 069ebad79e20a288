"""Devices of the pool, their slots, and the segments whose copies lie in those slots.

Takes block devices; gives verified reads from any copy, writes and flushes to all copies, and the
record of which members are in sync.
"""
