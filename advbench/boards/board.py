"""A board is a folder: a spec, its measured tables, and the pages that follow from them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
from tabulate import tabulate

from advbench.attacks.base import Norm
from advbench.errors import InputError
from advbench.evaluation import BINS
from advbench.grid.identity import DATA
from advbench.grid.spec import RunSpec, make_spec, parse_toml
from advbench.report import Report, read_report
from advbench.report.curves import Curve, read_curves
from advbench.report.judgements import NUMBERS
from advbench.report.markdown import render
from advbench.report.output import PAGE, contents
from advbench.report.page import render_page
from advbench.report.references import read_references
from advbench.report.tables import COUNTS, MEASURED, RESULT_COLUMNS
from advbench.report.texts import escape
from advbench.store.storage import write_file

SPEC = "spec.toml"
ABOUT = "about.md"
RUN_FILES = (
    "leaderboard.csv",
    "leaderboard.md",
    PAGE,
)  # a run leaves them; where they are, they follow from the tables
REFERENCES = "references"
CURVES = "curves"
LIBRARIES = ("advbench", "torch", "numpy")
LARGEST_TOP = 50.0  # nats of a histogram's range: of more classes than there can be
_FLOATS = ("eps", *(name for name in NUMBERS if name not in COUNTS))
_TEXTS = tuple(name for name in RESULT_COLUMNS if name not in (*_FLOATS, *COUNTS, "seed"))


@dataclass(frozen=True)
class Board:
    """What a board's folder holds.

    Attributes:
        folder: the folder.
        spec: what was computed.
        report: the tables.
        present: names of the measured tables' files that are there.
        references: files and folders with results of others, as RobustBench describes them.
        curves: along which attacks or judges were made stronger, by what to call them.
        curve_files: where they are.
        about: what those who made it say of it, from `about.md`, as Markdown; the page shows it as plain paragraphs.
    """

    folder: Path
    spec: RunSpec
    report: Report
    present: tuple[str, ...]
    references: tuple[Path, ...]
    curves: Mapping[str, Curve]
    curve_files: tuple[Path, ...]
    about: str = ""

    @property
    def results(self) -> pd.DataFrame:
        """The table that the others rest on."""
        return self.report.results

    def data_files(self) -> tuple[Path, ...]:
        """The files that the pages are made of, in a fixed order."""
        names = (SPEC, DATA, ABOUT, *(f"{name}.csv" for name in MEASURED))
        there = (self.folder / name for name in names if (self.folder / name).is_file())
        return (*there, *self.curve_files, *self.references)


def load_board(folder: Path) -> Board:
    """Read a board's folder.

    Raises:
        InputError: there is no such folder, spec or table of results, or one of its files cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"board {folder}", expected="a folder", got="none of that name")
    for name in (SPEC, "results.csv"):
        if not (folder / name).is_file():
            raise InputError(f"board {folder}", expected=f"{SPEC} and results.csv in it", got=f"no {name}")
    spec = make_spec(parse_toml(folder / SPEC))
    references = folder / REFERENCES
    curves = tuple(sorted((folder / CURVES).rglob("*.csv")))
    return Board(
        folder=folder,
        spec=spec,
        report=read_tables(folder),
        present=tuple(f"{name}.csv" for name in MEASURED if (folder / f"{name}.csv").is_file()),
        references=tuple(sorted(path for path in references.rglob("*") if path.is_file())),
        curves=read_curves(curves),
        curve_files=curves,
        about=_read_about(folder / ABOUT),
    )


def _read_about(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip() if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"file {path}", expected="readable text", got=str(error)) from error


def read_tables(folder: Path) -> Report:
    """The tables of a folder, whose columns hold what they should.

    Raises:
        InputError: a file cannot be read, has no rows, or holds text where numbers should be.
    """
    try:
        report = read_report(folder)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"tables of {folder}", expected="numbers where numbers should be", got=str(error)) from error
    for name, frame in zip(MEASURED, (getattr(report, name) for name in MEASURED), strict=True):
        _check_types(folder / f"{name}.csv", frame)
    if report.results.empty:
        raise InputError(f"table {folder / 'results.csv'}", expected="a row for each cell", got="no rows")
    return report


def _check_types(path: Path, frame: pd.DataFrame) -> None:
    if not isinstance(frame.index, pd.RangeIndex):
        raise InputError(f"table {path}", expected="as many values in a row as there are columns", got="more")
    for name in frame.columns if len(frame) else ():
        integral = pd.api.types.is_integer_dtype(frame[name])
        if name == "seed" and not integral:
            raise InputError(f"column seed of {path}", expected="whole numbers")
        if name in _FLOATS and not (integral or pd.api.types.is_float_dtype(frame[name])):
            raise InputError(f"column {name} of {path}", expected="numbers")
        if name == "eps" and not np.isfinite(frame[name].to_numpy(np.float64, na_value=math.nan)).all():
            raise InputError(f"column eps of {path}", expected="finite numbers")
    if path.name == "results.csv":
        odd = [name for name in _TEXTS if not all(isinstance(value, str) for value in frame[name])]
        if odd:
            raise InputError(f"columns {', '.join(odd)} of {path}", expected="text in every row")
        _check_results(path, frame)
    elif path.name == "histograms.csv":
        _check_bins(path, frame)


def _check_results(path: Path, frame: pd.DataFrame) -> None:
    """What pages and exports take for granted."""
    for norm in frame.norm.unique():
        if norm not in get_args(Norm):
            raise InputError(f"column norm of {path}", expected=" or ".join(get_args(Norm)), got=repr(norm)[:80])
    for name in ("defense_params", "attack_params"):
        for text in frame[name].unique():
            try:
                sound = isinstance(json.loads(text), dict)
            except (ValueError, RecursionError):
                sound = False
            if not sound:
                raise InputError(f"column {name} of {path}", expected="JSON objects", got=repr(text)[:80])


def _check_bins(path: Path, frame: pd.DataFrame) -> None:
    for text in frame.counts.unique():
        if not re.fullmatch(rf"[0-9]{{1,15}}( [0-9]{{1,15}}){{{BINS - 1}}}", text):
            raise InputError(f"column counts of {path}", expected=f"{BINS} whole numbers", got=repr(text)[:80])
    if not ((frame.top > 0) & (frame.top < LARGEST_TOP)).all():
        raise InputError(f"column top of {path}", expected="the logarithm of a number of classes in every row")


def build(folder: Path, references: Iterable[Path] = ()) -> tuple[Path, ...]:
    """Make a board's pages anew from its spec and tables.

    Args:
        folder: of the board.
        references: files or folders with results of others, which are copied into the board.

    Returns:
        The files written.

    Raises:
        InputError: a file is missing or cannot be read.
        StoreError: the folder cannot be written.
    """
    load_board(folder)
    _adopt(folder, references)
    board = load_board(folder)
    written = []
    for name, text in pages(board).items():
        write_file(folder / name, text.encode())
        written.append(folder / name)
    return tuple(written)


def _adopt(folder: Path, references: Iterable[Path]) -> None:
    """Copy results of others into the board, once they are known to be readable."""
    given = list(references)
    read_references(given)
    into = folder / REFERENCES
    copies: dict[Path, bytes] = {}
    for path in given:
        for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            if file.resolve().is_relative_to(into.resolve()):
                continue
            # RobustBench's layout, DATASET/NORM/MODEL.json: the folder's name says the norm.
            target = into.joinpath(*file.resolve().parts[1:][-3:])
            raw = file.read_bytes()
            if copies.setdefault(target, raw) != raw:
                raise InputError(f"reference {file}", expected="no other of its place and name", got=str(target))
    for target, raw in copies.items():
        write_file(target, raw)


def pages(board: Board) -> dict[str, str]:
    """The text of every file that follows from a board's spec and tables, by name."""
    beside = [file.relative_to(board.folder).as_posix() for file in board.data_files()]
    references = read_references(board.references)
    html = render_page(board.report, board.spec, references, beside=beside, about=board.about, curves=board.curves)
    texts = {"README.md": readme(board), "index.html": html}
    left = {name for name in RUN_FILES if (board.folder / name).is_file()}
    if left:
        due = {name: raw.decode() for name, raw in contents(board.report, ("csv", "md")) if name in left} | {PAGE: html}
        texts |= {name: due[name] for name in RUN_FILES if name in left}
    return texts


def readme(board: Board) -> str:
    """The leaderboard as Markdown, and how the board came to be."""
    return f"{render(board.report, board.about, board.curves)}\n{_origin(board)}"


def stated_versions(text: str) -> dict[str, str]:
    """What a row says of the versions that made it; empty where it says nothing that can be read."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    sound = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    return found if sound else {}


def release(version: str) -> str:
    """A version without its local part, which a checkout adds to its release."""
    return version.partition("+")[0]


def _origin(board: Board) -> str:
    rows = [stated_versions(text) for text in board.results.versions.unique()]
    made_with = [f"{name} {_several(rows, name)}" for name in LIBRARIES]
    root = "" if board.spec.dataset == "digits" else " --data-root PATH"
    lines = [
        "## This board",
        f"Computed with {', '.join(made_with)} on {_several(rows, 'device')}. In this folder:",
        f"- `advbench run --spec spec.toml --out .{root}` computes it again, then `advbench leaderboard build .` makes "
        "its pages;\n"
        "- `advbench leaderboard check .` checks it, and with `--rerun 3` computes three of its cells anew, chosen at "
        "random.",
        "The tables are those that were computed if the SHA-256 of these files are theirs:",
        _digests(board.folder, board.data_files()),
    ]
    return "\n\n".join(lines) + "\n"


def _several(rows: Iterable[Mapping[str, str]], name: str) -> str:
    return escape(" and ".join(dict.fromkeys(row[name] for row in rows if name in row))) or "an unknown version"


def _digests(folder: Path, files: Iterable[Path]) -> str:
    rows = [
        {"file": escape(path.relative_to(folder).as_posix()), "SHA-256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in files
    ]
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
