"""Checkpoints: make the state of one commit durable, to start recovery there and to free space.

Takes the pending changes of the map, and the catalogue. Gives a root that the superblocks name.
Merges deleted layers into their children and relocates old metadata on the way.
"""
