"""Reading everything again: the scrub of an open pool, and the check of a stopped one.

Takes segments, the map and the catalogue, and gives findings: which bytes are damaged, which
volumes they belong to, and whether a good copy repaired them.
"""
