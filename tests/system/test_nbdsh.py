"""libnbd's shell against our server, with structured replies and without."""

import pytest

from tests.system.nbd_peers import Served

pytestmark = pytest.mark.system

COMMANDS = """
import errno

structured = h.get_structured_replies_negotiated()
assert structured == STRUCTURED, structured
assert h.get_size() == 64 << 20 and not h.is_read_only()
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20
assert h.can_df() == structured

h.pwrite(b"a" * 70000, 1000)
h.pwrite(b"b" * 70000, 100000, nbd.CMD_FLAG_FUA)
h.zero(1000, 1000, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.trim(4096, 102400, nbd.CMD_FLAG_FUA)
h.cache(1 << 20, 0)
h.flush()
assert h.pread(70002, 999) == bytes(1001) + b"a" * 69000 + bytes(1)
assert h.pread(2400, 100000) == b"b" * 2400
assert h.pread(4096, 102400) in (bytes(4096), b"b" * 4096)

cookies = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytes([n]) * 5000), n * 5000) for n in range(200)]
while h.aio_in_flight():
    h.poll(-1)
assert all(h.aio_command_completed(cookie) for cookie in cookies)
assert h.pread(1000000, 0) == b"".join(bytes([n]) * 5000 for n in range(200))

h.set_strict_mode(0)  # let the server judge
for call, number in (
    (lambda: h.pread(1, 64 << 20), errno.EINVAL),
    (lambda: h.pwrite(b"x", 64 << 20), errno.ENOSPC),
    (lambda: h.zero(2, (64 << 20) - 1), errno.ENOSPC),
    (lambda: h.pread(8, 0, nbd.CMD_FLAG_REQ_ONE), errno.EINVAL),
):
    try:
        call()
    except nbd.Error as error:
        assert error.errnum == number, error
    else:
        raise AssertionError("succeeded")
h.shutdown()
"""


@pytest.mark.parametrize("structured", [True, False])
def test_commands(served: Served, structured: bool) -> None:
    script = f"STRUCTURED = {structured}\nh.set_request_structured_replies({structured})\n"
    script += f"h.connect_uri({served.uri()!r})\n"
    said = served.run("nbdsh", "-c", "-", stdin=script + COMMANDS + "print('all of it')\n")
    assert said == "all of it\n"


def test_a_shell_that_is_told_where(served: Served) -> None:
    """The options of nbdsh itself: a URI, contexts, and negotiation by hand."""
    told = served.run(
        "nbdsh", "--base-allocation", "-u", served.uri("thin"),
        "-c", "h.pwrite(b'x' * 4096, 1 << 20)",
        "-c", "h.block_status(2 << 20, 0, lambda name, at, runs, error: print(name, at, runs))",
    )  # fmt: skip
    runs = [1 << 20, 3, 4096, 0, (1 << 20) - 4096, 3]
    assert told == f"base:allocation 0 {runs}\n"
    by_hand = served.run(
        "nbdsh", "--opt-mode", "-u", served.uri(),
        "-c", "h.opt_list(lambda name, text: print(name))",
        "-c", "h.opt_list_meta_context(print)",
        "-c", "h.opt_info()",
        "-c", "print(h.get_size())",
        "-c", "h.opt_abort()",
    )  # fmt: skip
    assert by_hand.split() == ["disk", "fixed", "thin", "base:allocation", str(64 << 20)]
    refused = served.run("nbdsh", "-u", served.uri("nope"), fails=True)
    assert "no export named 'nope'" in refused


def test_a_shell_over_tls(served_once: Served) -> None:
    said = served_once.run(
        "nbdsh",
        "-c", "h.set_uri_allow_local_file(True)",  # the certificates
        "-c", f"h.connect_uri({served_once.tls_uri()!r})",
        "-c", "h.pwrite(b'secret', 3)",
        "-c", "print(h.get_tls_negotiated(), bytes(h.pread(6, 3)))",
    )  # fmt: skip
    assert said == "True b'secret'\n"
