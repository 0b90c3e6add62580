"""Entry point of the command line, with its exit codes: 0 done, 1 cells failed, 2 bad input, 130 interrupted."""

import gc
import signal
import sys
import traceback
import warnings
from typing import Any

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
    # Without a value for --help, typer imports pydantic to convert None.
    context_settings={"default_map": {"help": False, "plugins": {"help": False}}},
)
for command in (run.run, run.plan, show.status, run.curve, show.report, show.plugins, show.show, show.doctor):
    app.command()(command)
app.add_typer(store.app)
app.add_typer(leaderboard.app)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    complain("warning: " + " ".join(str(message).split()))


# typer brings its own copy of click or uses the installed one; this is the base class of whichever it is.
_USAGE_ERROR: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; an expected failure prints one line."""
    use_json("--log-json" in (sys.argv[1:] if arguments is None else arguments))
    code: Any
    with warnings.catch_warnings(), collecting(False):
        warnings.showwarning = _show_warning
        try:
            code = app(arguments, standalone_mode=False, prog_name="advbench")
        except _USAGE_ERROR as error:
            complain("error: " + " ".join(error.format_message().split()))
            return 2
        except AdvbenchError as error:
            complain(f"error: {error}")
            return 2
        except (KeyboardInterrupt, typer.Abort):
            code = 130  # some versions of typer raise for an interrupt, others return this code
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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # batch systems end a job with it
    code = main()
    gc.freeze()  # or Python looks through all objects of torch once more as it ends
    sys.exit(code)
