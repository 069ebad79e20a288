"""One tree of errors, named by what the caller does next."""


class NbdError(Exception):
    """Base of the tree."""


class ProtocolError(NbdError):
    """The peer broke the protocol or a limit; close the connection."""


class UnknownExportError(NbdError):
    """There is no export of that name; choose one that `names()` lists."""
