"""The command line: options, progress, exit codes (0 done, 1 cells failed, 2 bad input, 130 interrupted)."""

import gc
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import typer

from advbench.cli import leaderboard, run, show, store
from advbench.cli.output import complain, use_json, uses_json
from advbench.cli.run import collecting
from advbench.errors import AdvbenchError

app = typer.Typer(
    name="advbench",
    help="How robust is this defence, really? A benchmark for randomised and Bayesian defences.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes [default: ...] for markup
)
for command in (run.run, run.plan, show.status, run.curve, show.report, show.plugins, show.show, show.doctor):
    app.command()(command)
app.add_typer(store.app)
app.add_typer(leaderboard.app)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    del category, filename, lineno, file, line
    complain("warning: " + " ".join(str(message).split()))


# typer brings its own copy of click or uses the installed one; this is the base class of whichever it is.
_USAGE_ERROR: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; expected failures become one line and an exit code."""
    use_json("--log-json" in (sys.argv[1:] if arguments is None else arguments))
    with warnings.catch_warnings(), _termination(), collecting(False):
        warnings.showwarning = _show_warning
        code = _run(arguments)
    if code == 130:
        complain("interrupted; the same command goes on from here")
    return code


@contextmanager
def _termination() -> Iterator[None]:
    """A polite request to end, as batch systems send it, is treated as the keyboard's interrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: list[str] | None) -> int:
    try:
        code = app(arguments, standalone_mode=False, prog_name="advbench")
    except _USAGE_ERROR as error:
        complain("error: " + " ".join(error.format_message().split()))
        return 2
    except AdvbenchError as error:
        complain(f"error: {error}")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        return 130  # some versions of typer raise for an interrupt, others return this code
    except Exception:
        if not uses_json():
            raise
        complain(f"bug: {traceback.format_exc()}")
        return 1
    return code if isinstance(code, int) else 0


def script() -> None:
    """The console script."""
    code = main()
    gc.freeze()  # or Python looks through all objects of torch once more as it ends
    sys.exit(code)
