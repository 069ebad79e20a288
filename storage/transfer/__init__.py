"""Sending snapshots to other pools and receiving them, as streams of bytes.

Takes two snapshots and gives a stream; takes a stream and gives a snapshot that appears when all of
it is durable.
"""
