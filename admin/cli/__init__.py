"""The command line of Cenote.

Takes the words of a command, calls the control API, the daemon or the NBD client, and gives a
report and an exit status.
"""
