"""Cleaning: gives back the space of segments whose blocks are mostly dead.

Takes segments, and from the map which of their blocks are alive. Stores the live blocks in other
segments and logs their new places; checkpoints then free the emptied segments.
"""
