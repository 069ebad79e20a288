"""The state of one commit, made durable, so that recovery starts there and space comes back.

Takes pending changes of the map and the catalogue, and gives a root that the superblocks name.
Merges layers and moves old metadata on the way.
"""
