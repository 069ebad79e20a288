"""The log: turns writes into durable commits.

Takes writes, zero ranges, moves and catalogue operations into buffers. Gives numbered commits that
are written to every copy and flushed. Writers wait here for memory and for space.
"""
