"""A report as files: tables, leaderboard, page and figures; what draws is loaded only where something is drawn."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from advbench.errors import InputError, unknown_name
from advbench.grid.identity import DATA
from advbench.grid.kept import content as kept_files
from advbench.grid.plan import Plan
from advbench.grid.run import keep
from advbench.grid.scheduler import Outcome, failures
from advbench.grid.spec import BOARD
from advbench.registry import files
from advbench.report.markdown import render, render_latex
from advbench.report.references import Reference
from advbench.report.tables import FILES as TABLES
from advbench.report.tables import OPTIONAL, Report, collect, to_csv
from advbench.store.records import Store
from advbench.store.storage import write_file

FIGURES = ("svg", "pdf", "png")
FORMATS = ("csv", "md", "html", "latex", *FIGURES)
DEFAULT = ("csv", "md", "html")
PAGE = "leaderboard.html"
FILES = (*TABLES.values(), "leaderboard.csv", "leaderboard.md")
PLACE = ["source", "defense", "attack", "eps", "seed"]


def check_formats(names: Iterable[str]) -> None:
    """Refuse what is none of `FORMATS`.

    Raises:
        InputError: with what was probably meant.
    """
    for name in names:
        if name not in FORMATS:
            raise unknown_name("format", name, FORMATS)


def contents(
    report: Report,
    formats: Collection[str],
    references: Sequence[Reference] = (),
    about: str = "",
    beside: Sequence[str] = (),
    date: str = "",
    board: str = "",
) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each file, one at a time; the same bytes for the same report and versions of libraries.

    Args:
        report: the tables.
        formats: keys of `FORMATS`.
        references: models evaluated elsewhere, for the page.
        about: what else there is to say, for the page.
        beside: other files in the same folder, for the page.
        date: day on which it is made, for the page.
        board: name of the published board, for the page.
    """
    beside = list(beside)
    if "csv" in formats:
        for name, frame in {**report.tables(), "leaderboard.csv": report.leaderboard}.items():
            beside.append(name)
            yield name, to_csv(frame)
    if "md" in formats:
        beside.append("leaderboard.md")
        yield "leaderboard.md", render(report).encode()
    if "html" in formats:
        from advbench.report.page import render_page

        yield PAGE, render_page(report, references, beside, about, date=date, board=board).encode()
    if "latex" in formats:
        yield "leaderboard.tex", render_latex(report).encode()
    if any(form in FIGURES for form in formats):
        from advbench.report.figures import all_figures, to_bytes

        for name, figure in all_figures(report):
            for form in FIGURES:
                if form in formats:
                    yield f"figures/{name}.{form}", to_bytes(figure, form)


def day() -> str:
    """The day that a page states, today or that of SOURCE_DATE_EPOCH, as 2026-01-31."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = datetime.fromtimestamp(int(epoch), UTC) if epoch.isdecimal() else datetime.now(UTC)
    return now.date().isoformat()


def collect_anew(plan: Plan, store: Store) -> Report:
    """The tables of a run from what a store holds by now."""
    failed = failures(plan, store)
    plan = replace(plan, tasks={})  # which take as much memory as the tables, of a large grid
    return collect(plan, store, failed)


def write_out(plan: Plan, store: Store, outcome: Outcome, out: Path) -> tuple[Report, tuple[Path, ...]]:
    """Make a run's tables and write its files, also when cells failed.

    Returns:
        The tables, and the files written.

    Raises:
        StoreError: the folder cannot be written.
    """
    report = collect(plan, store, outcome.failed)
    texts = {"spec.toml": plan.spec.to_toml().encode()}
    if plan.identity is not None:
        texts[DATA] = plan.identity.to_bytes()
    texts |= kept_files(keep(plan), {each.digest: each for each in files.all_known()})
    for name, raw in texts.items():
        write_file(out / name, raw)
    return report, (*(out / name for name in texts), *write_report(report, out))


def write_report(
    report: Report,
    out: Path,
    formats: Collection[str] = DEFAULT,
    references: Sequence[Reference] = (),
    about: str = "",
    date: str = "",
    board: str = "",
) -> tuple[Path, ...]:
    """Write a report into a folder, in all of these formats; returns the files' paths."""
    beside = [name for name in ("spec.toml", DATA) if (out / name).is_file()]
    paths = []
    for name in OPTIONAL:  # one that an earlier run left there is not this run's
        (out / f"{name}.csv").unlink(missing_ok=True)
    for name, raw in contents(report, formats, references, about, beside, date, board):
        write_file(out / name, raw)
        paths.append(out / name)
    return tuple(paths)


def check_kept(folder: Path, results: pd.DataFrame) -> None:
    """Make sure that no result in a folder's `results.csv` would be missing from the one that takes its place.

    Raises:
        InputError: some would.
    """
    try:
        before = pd.read_csv(folder / "results.csv", usecols=[*PLACE, "accuracy"], keep_default_na=False, dtype=str)
        before = before[before.accuracy != ""].astype({"eps": float, "seed": int})
    except (OSError, ValueError):
        return  # nothing that could be read
    there = pd.MultiIndex.from_frame(results.loc[results.accuracy.notna(), PLACE])
    lost = len(before) - int(pd.MultiIndex.from_frame(before[PLACE]).isin(there).sum())
    if lost:
        raise InputError(
            f"folder {folder}",
            expected="to keep the results in its tables",
            got=f"{lost} that would be missing then",
            remedy="name the run's store with --store; to draw tables as they are: advbench leaderboard build --format",
        )


def check_no_board(out: Path) -> None:
    """Make sure that a run or report does not write into a published board.

    Raises:
        InputError: it would.
    """
    if (out / BOARD).exists():
        raise InputError(
            f"output folder {out}",
            expected="no board",
            got=f"a folder with {BOARD}",
            remedy="choose another; 'advbench leaderboard build BOARD --store STORE' takes results into a board",
        )


def check_writable(out: Path) -> None:
    """Make the output folder and make sure that it can be written, before any work is done.

    Raises:
        InputError: it cannot.
    """
    probe = out / ".advbench-write-test"
    for name in ("spec.toml", "data.json", PAGE, *FILES):
        if (out / name).is_dir():
            raise InputError(f"output folder {out}", expected=f"no folder named {name} in it", remedy="move it away")
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"output folder {out}",
            expected="a folder that can be written",
            got=error.strerror or str(error),
            remedy="choose another with --out",
        ) from error
