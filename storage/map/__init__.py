"""The block map: from a layer and a block number to the place of its bytes.

Takes the records of durable commits, and gives the bytes of a range, its extents, and what differs
between two layers. Pages are cached; overlays hold what is not durable yet.
"""
