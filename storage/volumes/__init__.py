"""Everything that has a name: block devices, management, quotas, and reports of them.

Takes names, and gives open volumes and snapshots as block devices, and the catalogue operations
that change them.
"""
