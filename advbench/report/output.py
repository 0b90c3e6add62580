"""A report as files: tables, leaderboard, page and figures; what draws is loaded only where something is drawn."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from advbench.errors import InputError, unknown_name
from advbench.grid.identity import DATA, identity_text
from advbench.grid.plan import Plan
from advbench.grid.scheduler import Outcome, failures
from advbench.grid.spec import RunSpec
from advbench.report.markdown import render
from advbench.report.references import Reference
from advbench.report.tables import MEASURED, Report, collect, to_csv
from advbench.store.records import Store
from advbench.store.storage import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = {
    "csv": "every table, and the leaderboard",
    "md": "the leaderboard, leaderboard.md",
    "html": "the page, leaderboard.html",
    "latex": "the main table, leaderboard.tex",
    "svg": "the figures, in figures/",
    "pdf": "likewise",
    "png": "likewise",
}
DEFAULT = ("csv", "md", "html")
PAGE = "leaderboard.html"
BOARD = "records.jsonl.gz"  # the file that makes a folder a board
FILES = (*(f"{name}.csv" for name in MEASURED), "leaderboard.csv", "leaderboard.md")
PLACE = ["source", "defense", "attack", "eps", "seed"]


def check_formats(names: Collection[str], known: Collection[str] = tuple(FORMATS)) -> None:
    """Refuse what is none of these formats.

    Raises:
        InputError: with what was probably meant.
    """
    for name in names:
        if name not in known:
            raise unknown_name("format", name, known)


def contents(
    report: Report,
    formats: Collection[str],
    spec: RunSpec | None = None,
    references: Sequence[Reference] = (),
    about: str = "",
) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each file, one at a time; the same bytes for the same report and versions of libraries.

    Args:
        report: the tables.
        formats: keys of `FORMATS`.
        spec: of the run.
        references: models judged elsewhere, for the page.
        about: what else there is to say, for the page.
    """
    beside = [] if spec is None else ["spec.toml", "data.json"]
    if "csv" in formats:
        for name, frame in {**report.tables(), "leaderboard.csv": report.leaderboard}.items():
            beside.append(name)
            yield name, to_csv(frame)
    if "md" in formats:
        beside.append("leaderboard.md")
        yield "leaderboard.md", render(report).encode()
    if "html" in formats:
        from advbench.report.page import render_page

        yield PAGE, render_page(report, spec, references, beside=beside, about=about).encode()
    if "latex" in formats:
        from advbench.report.latex import render_latex

        yield "leaderboard.tex", render_latex(report).encode()
    pictures = [form for form in ("svg", "pdf", "png") if form in formats]
    for name, draw in _figures(report).items() if pictures else ():
        from advbench.report.figures import to_bytes

        figure = draw()
        for form in pictures:
            yield f"figures/{name}.{form}", to_bytes(figure, form)


def _figures(report: Report) -> dict[str, Callable[[], Figure]]:
    """Each figure that the tables allow, by the name of its file."""
    from advbench.report import figures

    results, affinity = report.results, report.affinity
    found: dict[str, Callable[[], Figure]] = {}
    for attack in map(str, results[results.attack != "none"].attack.unique()):
        name = re.sub(r"[^\w.+-]", "-", attack)
        found[f"security-{name}"] = partial(figures.security_curves, report, attack)
        if not report.retention.empty:
            found[f"retention-{name}"] = partial(figures.retention_curves, report, attack)
        if not report.histograms.empty:
            found[f"uncertainty-{name}"] = partial(figures.uncertainty_histograms, report, attack)
        cells = affinity[affinity.attack == attack]
        if (cells.source != cells.target).any():
            found[f"affinity-{name}"] = partial(figures.affinity_heatmap, report, attack)
    return found


def collect_anew(plan: Plan, store: Store) -> Report:
    """The tables of a run from what a store holds by now."""
    failed = failures(plan, store)
    plan = replace(plan, tasks={})  # of a large grid they take as much memory as the tables, which do without
    return collect(plan, store, failed)


def write_out(plan: Plan, store: Store, outcome: Outcome, out: Path) -> tuple[Report, tuple[Path, ...]]:
    """Make a run's tables and write its files, also when cells failed.

    Returns:
        The tables, and the files written.

    Raises:
        StoreError: the folder cannot be written.
    """
    report = collect(plan, store, outcome.failed)
    texts = {"spec.toml": plan.spec.to_toml()}
    if plan.identity is not None:
        texts[DATA] = identity_text(plan.identity)
    for name, text in texts.items():
        write_file(out / name, text.encode())
    return report, (*(out / name for name in texts), *write_report(report, out, plan.spec))


def write_report(
    report: Report,
    out: Path,
    spec: RunSpec,
    formats: Collection[str] = DEFAULT,
    references: Sequence[Reference] = (),
    about: str = "",
) -> tuple[Path, ...]:
    """Write a report into a folder, in all of these formats; returns the files' paths."""
    paths = []
    for name, raw in contents(report, formats, spec, references, about):
        write_file(out / name, raw)
        paths.append(out / name)
    return tuple(paths)


def check_kept(folder: Path, results: pd.DataFrame) -> None:
    """Make sure that no result that a folder's table has would be missing from the one that takes its place.

    Raises:
        InputError: some would.
    """
    lost = _lost(folder, results)
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


def _lost(folder: Path, results: pd.DataFrame) -> int:
    """How many rows of a folder's `results.csv` have a result, and none in other results."""
    try:
        before = pd.read_csv(folder / "results.csv", usecols=[*PLACE, "accuracy"], keep_default_na=False, dtype=str)
        before = before[before.accuracy != ""].astype({"eps": float, "seed": int})
    except (OSError, ValueError):
        return 0  # nothing that could be read
    there = pd.MultiIndex.from_frame(results.loc[results.accuracy.notna(), PLACE])
    return len(before) - int(pd.MultiIndex.from_frame(before[PLACE]).isin(there).sum())


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
