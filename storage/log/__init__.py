"""From a write to a durable commit.

Takes writes, zero ranges and catalogue operations into buffers, and gives numbered commits that are
written to every copy and flushed. Writers wait here for memory and for space.
"""
