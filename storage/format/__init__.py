"""Bytes on disk and the plain values they decode to; FORMAT.md is made from these modules.

No I/O, no state: bytes in, values out, and back. Every parser takes any bytes and gives a value or
DamagedError.
"""
