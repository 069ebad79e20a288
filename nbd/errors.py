"""Errors of the NBD server and client: one tree, with a class for each reaction of the caller."""


class NbdError(Exception):
    """Base of the tree."""


class ProtocolError(NbdError):
    """The peer broke the protocol or a limit; close the connection."""


class UnknownExportError(NbdError):
    """There is no export of that name; choose one that `names()` lists."""


class TlsError(NbdError):
    """TLS cannot be set up; fix the file, the setting or the certificate in the message."""


class UnreachableError(NbdError):
    """The server cannot be reached, or does not answer; start it, or try again later."""


class RefusedError(NbdError):
    """The server refuses the export or the option; ask its administrator why."""
