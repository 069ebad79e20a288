"""Forks our commands and servers from one process that has imported all of their modules.

    python -m tests.system.fork_server DESCRIPTOR

To start Python and import the daemon takes most of a second of a processor; a fork takes some
milliseconds. `tests.system.processes` starts one fork server in each process that runs tests, and
asks it over a socket (SOCK_SEQPACKET), one message for each process to start:

    message      JSON: main, words, cwd, environment
    descriptors  stdin, stdout and stderr of the new process, and a pipe for its status

Each started process has a keeper, its parent, which writes two lines to the pipe: the process id,
and later the exit status, or the negated number of the signal that ended the process. The fork
server ends when the socket is closed.
"""

import contextlib
import gc
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import admin.daemon.logs
import admin.daemon.nbd_service
import admin.daemon.pool_record
import admin.daemon.run
import admin.daemon.service  # noqa: F401 - this and those before are what `cenote serve` imports
from admin import __main__ as program
from admin.cli.main import main as cenote
from tests.unit.nbd.serve_memory import run as serve_memory

MESSAGE_BYTES_MAX = 1 << 17

MAINS: dict[str, Callable[[], int]] = {"cenote": cenote, "serve_memory": serve_memory}


def main() -> None:
    requests = socket.socket(fileno=int(sys.argv[1]))
    gc.collect()
    gc.freeze()  # so that a fork copies fewer pages
    while True:
        data, descriptors, _, _ = socket.recv_fds(requests, MESSAGE_BYTES_MAX, 4)
        if not data:
            return
        _reap()
        if not os.fork():
            requests.close()
            _keep(json.loads(data), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _reap() -> None:
    """Take leave of keepers that have ended, so that their time counts as this process's."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _keep(request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """Start the process, and tell what becomes of it."""
    *streams, told = descriptors
    process = os.fork()
    if not process:
        os.close(told)
        _become(request, streams)
    for descriptor in streams:
        os.close(descriptor)
    os.write(told, b"%d\n" % process)
    _, status = os.waitpid(process, 0)
    try:
        os.write(told, b"%d\n" % os.waitstatus_to_exitcode(status))
    finally:
        os._exit(0)


def _become(request: dict[str, Any], streams: list[int]) -> NoReturn:
    """Run a program as `python -m` would, and end."""
    code = 1
    try:
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = [program.__file__, *request["words"]]
        code = MAINS[request["main"]]()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
