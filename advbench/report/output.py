"""Files of a report: tables, leaderboard, page and figures; drawing libraries are loaded only if needed."""

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
    """Raise for names that are not in `FORMATS`.

    Raises:
        InputError: a name is unknown; suggests the nearest one.
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
    """Iterate over names and bytes of files; equal reports and versions of libraries give equal bytes.

    Args:
        report: the tables.
        formats: keys of `FORMATS`.
        references: models evaluated elsewhere, for the page.
        about: further description, for the page.
        beside: other files in the same folder, for the page.
        date: date of the report, for the page.
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
    """Date for a page, today or that of SOURCE_DATE_EPOCH, such as 2026-01-31."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = datetime.fromtimestamp(int(epoch), UTC) if epoch.isdecimal() else datetime.now(UTC)
    return now.date().isoformat()


def collect_anew(plan: Plan, store: Store) -> Report:
    """Make the tables of a run from the current content of a store."""
    failed = failures(plan, store)
    plan = replace(plan, tasks={})  # which take as much memory as the tables, of a large grid
    return collect(plan, store, failed)


def write_out(plan: Plan, store: Store, outcome: Outcome, out: Path) -> tuple[Report, tuple[Path, ...]]:
    """Make a run's tables and write its files, even if cells failed.

    Returns:
        The tables, and the written files.

    Raises:
        StoreError: the folder cannot be written.
    """
    report = collect(plan, store, outcome.failed)
    return report, (*write_inputs(plan, out), *write_report(report, out))


def write_inputs(plan: Plan, out: Path) -> tuple[Path, ...]:
    """Write what a run is made of: spec.toml, data.json, and files; from the start, so that `report` finds them.

    Raises:
        StoreError: the folder cannot be written.
    """
    texts = {"spec.toml": plan.spec.to_toml().encode()}
    if plan.identity is not None:
        texts[DATA] = plan.identity.to_bytes()
    texts |= kept_files(keep(plan), {each.digest: each for each in files.all_known()})
    for name, raw in texts.items():
        write_file(out / name, raw)
    return tuple(out / name for name in texts)


def write_report(
    report: Report,
    out: Path,
    formats: Collection[str] = DEFAULT,
    references: Sequence[Reference] = (),
    about: str = "",
    date: str = "",
    board: str = "",
) -> tuple[Path, ...]:
    """Write a report into a folder in the given formats; return the paths of the files."""
    beside = [name for name in ("spec.toml", DATA) if (out / name).is_file()]
    paths = []
    for name in OPTIONAL:  # one that an earlier run left there is not this run's
        (out / f"{name}.csv").unlink(missing_ok=True)
    for name, raw in contents(report, formats, references, about, beside, date, board):
        write_file(out / name, raw)
        paths.append(out / name)
    return tuple(paths)


def check_kept(folder: Path, results: pd.DataFrame) -> None:
    """Check that new results include all results in a folder's `results.csv`.

    Raises:
        InputError: some results would be lost.
    """
    try:
        before = pd.read_csv(folder / "results.csv", usecols=[*PLACE, "accuracy"], keep_default_na=False, dtype=str)
        before = before[before.accuracy != ""].astype({"eps": float, "seed": int})
    except (OSError, ValueError):
        return  # no readable table
    there = pd.MultiIndex.from_frame(results.loc[results.accuracy.notna(), PLACE])
    lost = len(before) - int(pd.MultiIndex.from_frame(before[PLACE]).isin(there).sum())
    if lost:
        raise InputError(
            f"folder {folder}",
            expected="to keep the results in its tables",
            got=f"{lost} that would be lost",
            remedy="choose the run's store with --store; to draw existing tables: advbench leaderboard build --format",
        )


def check_no_board(out: Path) -> None:
    """Check that the output folder of a run or report is not a published board.

    Raises:
        InputError: it is a board.
    """
    if (out / BOARD).exists():
        raise InputError(
            f"output folder {out}",
            expected="a folder that is not a board",
            got=f"a folder with {BOARD}",
            remedy="choose another; 'advbench leaderboard build BOARD --store STORE' adds results to a board",
        )


def check_writable(out: Path) -> None:
    """Create the output folder and check that it is writable, before any work is done.

    Raises:
        InputError: it is not writable.
    """
    probe = out / ".advbench-write-test"
    for name in ("spec.toml", "data.json", PAGE, *FILES):
        if (out / name).is_dir():
            raise InputError(f"output folder {out}", expected=f"no folder named {name} in it", remedy="move it")
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"output folder {out}",
            expected="a writable folder",
            got=error.strerror or str(error),
            remedy="choose another with --out",
        ) from error
