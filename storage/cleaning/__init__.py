"""Getting space back from segments whose blocks are mostly dead.

Takes segments and what of them is alive, and gives free segments: it stores the live blocks again
and logs where they went.
"""
