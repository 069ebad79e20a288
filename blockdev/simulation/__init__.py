"""Simulated disks, for tests: caches that a power cut empties, torn writes, planned faults.

The room takes a seed, which decides the behavior of the disks. No production code imports it.
"""
