"""The bound of waits that only end a hang."""

HANG_S = 600.0
"""A test that waits so long for a condition hangs. On a quiet machine all these waits end within
some seconds; a machine that is loaded a hundred times over does not reach the bound."""
