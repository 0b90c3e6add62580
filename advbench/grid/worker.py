"""Worker process of the local executor. Imports heavy modules only after it watches its driver."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection

MOVES = 0.2  # minimum seconds between two progress events of a task


def work(descriptor: int) -> None:
    """Run tasks until the driver is gone.

    Args:
        descriptor: file descriptor of the connection for tasks and events.
    """
    os.set_inheritable(descriptor, False)
    line = Connection(descriptor)
    threading.Thread(target=_die_with_the_driver, args=(line,), daemon=True).start()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="replace")  # type: ignore[union-attr]
    from advbench.grid.executors import attempt
    from advbench.grid.tasks import Runner

    with suppress(EOFError, BrokenPipeError):
        runner = Runner(line.recv())
        while True:
            line.send(attempt(runner, line.recv(), line.send, MOVES))


def _die_with_the_driver(line: Connection) -> None:
    hangup = select.poll()
    hangup.register(line, 0)
    hangup.poll()
    os.killpg(0, signal.SIGKILL)
