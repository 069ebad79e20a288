"""Volumes and snapshots: block devices, names, management, quotas, flattening, and reports.

Takes names. Gives open volumes and snapshots as block devices, and the catalogue operations that
change volumes and snapshots.
"""
