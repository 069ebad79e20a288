"""The command line.

Takes words, calls the control API, the daemon or the NBD client, and gives reports and an exit
status.
"""
