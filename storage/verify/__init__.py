"""Verifies all that is stored: the scrub of an open pool, and the check of a stopped one.

Takes segments, the map and the catalogue, and gives findings: which bytes are damaged, which
volumes read them, and whether they were repaired from a good copy.
"""
