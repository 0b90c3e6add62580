"""Worker process of the local executor. Imports heavy modules only after it watches its driver."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import replace
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
    from advbench.grid.devices import responds
    from advbench.grid.executors import attempt
    from advbench.grid.tasks import Runner

    with suppress(EOFError, BrokenPipeError):
        runtime = line.recv()
        runner = Runner(runtime)
        while True:
            task, shared = line.recv()
            ended = attempt(runner, task, line.send, MOVES, shared=shared)
            last = ended.failure is not None and not responds(runtime.resources.device)
            line.send(replace(ended, last=last))
            if last:
                return


def _die_with_the_driver(line: Connection) -> None:
    hangup = select.poll()
    hangup.register(line, 0)
    hangup.poll()
    os.killpg(0, signal.SIGKILL)
