"""Encodes and decodes the bytes on disk; FORMAT.md is made from the docstrings of these modules.

No I/O and no state: each module turns bytes into plain values and back. Every parser takes any
bytes and returns a value or raises an error of the pool.
"""
