"""Entry point of the command line, with its exit codes: 0 done, 1 cells failed, 2 bad input, 130 interrupted."""

import gc
import importlib.metadata
import inspect
import io
import os
import re
import signal
import sys
import traceback
import warnings
from typing import Annotated, Any

import typer

from advbench.cli import audit, leaderboard, new, reproduce, run, show, store
from advbench.cli.output import complain, say, use_json, uses_json
from advbench.cli.run import collecting
from advbench.errors import AdvbenchError, InputError

app = typer.Typer(
    name="advbench",
    help="How robust is this defense, really? A benchmark for randomised and Bayesian defenses.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would parse [default: ...] as markup
    # Without a value for --help, typer imports pydantic to convert None.
    context_settings={"default_map": {"help": False, "plugins": {"help": False}}},
)
commands = (run.run, run.plan, show.status, run.curve, show.report, audit.audit, show.plugins, show.show, show.doctor)
for command in (*commands, reproduce.reproduce, new.new):
    app.command()(command)
app.command("test")(new.conform)
for group in (store.app, leaderboard.app):
    app.add_typer(group, short_help=group.info.help)
for group in (app, store.app, leaderboard.app):
    for each in group.registered_commands:  # otherwise summaries are truncated
        each.short_help = (inspect.getdoc(each.callback) or "").partition("\n\n")[0]


def _say_version(wanted: bool) -> None:
    if wanted:
        say(f"advbench {importlib.metadata.version('advbench')}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_say_version, help="print the version and exit")
    ] = False,
) -> None:
    del version


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    complain(f"warning: {message}")


def _with_home(argument: str) -> str:
    """Expand `~` at the beginning of a path in an argument; a shell does so for `--out ~/x` only.

    Raises:
        InputError: the home folder is unknown.
    """
    option, path = re.fullmatch(r"(--[\w-]+=)?(.*)", argument, re.DOTALL).groups(default="")  # type: ignore[union-attr]
    found = os.path.expanduser(path)
    if path.startswith("~") and found == path:
        raise InputError(
            f"argument {argument!r}", expected="a known home folder", remedy="use the full path, or set HOME"
        )
    return option + found


# typer brings its own copy of click or uses the installed one; this is the base class of whichever it is.
_USAGE_ERROR: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; an expected failure prints one line."""
    given = sys.argv[1:] if arguments is None else arguments
    use_json("--log-json" in given)
    code: Any
    with warnings.catch_warnings(), collecting(False):
        warnings.showwarning = _show_warning
        try:
            code = app(list(map(_with_home, given)), standalone_mode=False, prog_name="advbench")
        except _USAGE_ERROR as error:
            if type(error).__name__ == "NoArgsIsHelpError":  # print the help
                for line in error.format_message().splitlines():
                    say(line)
            else:
                complain(f"error: {error.format_message()}")
            return 2
        except AdvbenchError as error:
            complain(f"error: {error}")
            return 2
        except OSError as error:  # from a user's file, where no code handles it, or from typer's output
            complain(f"error: {error.filename or 'a file or the output'}: {error.strerror or error}")
            return 2
        except (KeyboardInterrupt, typer.Abort):
            code = 130  # on interrupts, some versions of typer raise and others return this code
        except Exception:
            if not uses_json():
                raise
            complain(f"bug: {traceback.format_exc()}")
            return 1
    if code == 130:
        complain("interrupted; run the same command again to resume")
    return code if isinstance(code, int) else 0


def script() -> None:
    """Run the console script."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # sent by batch systems to stop a job
    for stream in (sys.stdout, sys.stderr):  # independent of the terminal's encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    code = main()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # already reported; otherwise Python would try again and print its own message
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    gc.freeze()  # otherwise Python traverses all objects of torch at exit
    sys.exit(code)
