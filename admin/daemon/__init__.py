"""The process that serves a pool: it opens or creates, serves, schedules, scrubs and stops.

Takes a configuration and a home, and runs the pool, the NBD server and the control API over them.
Of `admin`, only `devices` names concrete devices.
"""
