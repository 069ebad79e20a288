"""The pool: log, block map, layers, members and recovery over any block devices."""
