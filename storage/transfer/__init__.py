"""Sends snapshots to other pools and receives them, as streams of bytes.

Sending takes a snapshot and perhaps another one, its base, and gives a stream. Receiving takes a
stream and gives a snapshot, which appears when all of it is durable.
"""
