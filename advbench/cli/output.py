"""What a command prints: results on standard output, all else on standard error, as lines or as JSON."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from advbench.report import Report

_how: dict[str, bool] = {}


def say(line: str) -> None:
    """Print a line of a command's result."""
    typer.echo(line)


def complain(line: str) -> None:
    """Print a line that is no result: an error, a warning, a note."""
    if uses_json():
        from advbench.cli.display import json_line

        kind, _, message = line.partition(": ")
        known = kind in ("error", "warning", "bug")
        typer.echo(json_line(kind if known else "note", message=message if known else line), err=True)
    else:
        typer.echo(line, err=True)


def use_json(enabled: bool) -> None:
    """Print what is no result as lines of JSON from now on, or as text."""
    _how["json"] = enabled


def uses_json() -> bool:
    """Whether what is no result is printed as lines of JSON."""
    return _how.get("json", False)


def print_end(report: "Report", files: tuple[Path, ...]) -> None:
    """Print a run's main table, the files written, and how many cells are flagged."""
    from advbench.report.flags import FLAGS
    from advbench.report.markdown import main_table

    say(main_table(report))
    say("")
    for path in files:
        say(str(path))

    undefined = report.affinity[report.affinity.affinity.isna()]
    if len(undefined):
        complain(f"warning: {len(undefined)} affinities are undefined (NaN); affinity.csv says why")
    doubtful = int(report.results["flags"].str.contains("|".join(FLAGS)).sum())
    if doubtful:
        complain(f"warning: {doubtful} cells are to be read with doubt; leaderboard.md says why")
