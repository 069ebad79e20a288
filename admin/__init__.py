"""Everything an administrator touches: the daemon, its control API, the command line."""

__version__ = "0.1.0"
