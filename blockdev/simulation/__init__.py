"""Simulated disks, for tests: caches that a power cut empties, torn writes, planned faults.

Takes a seed, and gives disks whose behaviour it decides. Nothing in production imports this room.
"""
