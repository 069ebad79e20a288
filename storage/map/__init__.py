"""The block map: finds where the bytes of a layer's block are stored.

Takes the records of durable commits. Gives the bytes of a range, its extents, and the differences
between two layers. Pages are cached; overlays hold the blocks that are not durable yet.
"""
