"""Output of commands: results on standard output, all else on standard error, as lines or JSON."""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from advbench.errors import StoreError, one_line, printable

if TYPE_CHECKING:
    from advbench.report import Report

_how: dict[str, bool] = {}


def say(line: object) -> None:
    """Print a line of a command's result; control characters, as in names of files, are escaped.

    Raises:
        StoreError: standard output cannot be written.
    """
    try:
        typer.echo(printable(str(line)))
    except OSError as error:
        raise StoreError(f"cannot write to standard output: {error.strerror or error}") from error


def complain(line: str) -> None:
    """Print a line that is not a result: an error, a warning, a note; escaped and shortened to one line."""
    if uses_json():
        from advbench.cli.display import json_line

        kind, _, message = line.partition(": ")
        known = kind in ("error", "warning", "bug")
        line = json_line(kind if known else "note", message=message if known else line)
    else:
        line = one_line(line)
    with contextlib.suppress(OSError):  # there is no other output
        typer.echo(line, err=True)


def refuse(problems: Iterable[str]) -> None:
    """Print problems, if there are any, and end with exit code 1."""
    found = list(problems)
    for line in found:
        complain(line)
    if found:
        raise typer.Exit(1)


def use_json(enabled: bool) -> None:
    """Let `complain` print lines of JSON, or text."""
    _how["json"] = enabled


def uses_json() -> bool:
    """True if `complain` prints lines of JSON."""
    return _how.get("json", False)


def print_end(report: "Report", files: tuple[Path, ...]) -> None:
    """Print a run's main table, the files written, and the number of flagged cells."""
    from advbench.report.flags import FLAGS
    from advbench.report.markdown import main_table

    for line in (*main_table(report).splitlines(), "", *files):
        say(line)
    undefined = int(report.affinity.affinity.isna().sum())
    if undefined and report.affinity.target.nunique() > 1:
        complain(f"warning: {undefined} affinities are undefined (NaN); affinity.csv gives the reasons")
    flagged = int(report.results["flags"].str.contains("|".join(FLAGS)).sum())
    if flagged:
        complain(f"warning: {flagged} cells are flagged as unreliable; leaderboard.md gives the reasons")
