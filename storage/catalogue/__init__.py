"""Volumes, snapshots, schedules and the tree of layers, as plain data at one commit.

Takes operations, which the log stores, and gives the state that they lead to. No I/O: the same
operations give the same catalogue when they are carried out and when they are replayed.
"""
