"""One tree of errors, named by what the caller does next."""


class NbdError(Exception):
    """Base of the tree."""


class ProtocolError(NbdError):
    """The peer broke the protocol or a limit; close the connection."""


class UnknownExportError(NbdError):
    """There is no export of that name; choose one that `names()` lists."""


class TlsError(NbdError):
    """TLS does not come about: fix the file, the setting or the certificate that it names."""


class UnreachableError(NbdError):
    """The server cannot be reached, or does not answer; start it, or try again later."""


class RefusedError(NbdError):
    """The server does not let us have what we asked for; ask its administrator why."""
