"""Checks a board as a whole: its pages, rows, keys, versions and tables."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import NamedTuple

from advbench.boards import staging
from advbench.boards.board import Board, load_board, pages, stated_versions
from advbench.boards.certainty import classes_of
from advbench.boards.curves import check_curves
from advbench.boards.derived import check_tables
from advbench.boards.findings import Findings
from advbench.boards.plans import data_at_hand, plan_as_made
from advbench.boards.rows import check_rows
from advbench.data.datasets import Dataset, load_dataset
from advbench.errors import InputError
from advbench.grid.identity import Identity, identify, is_about, read_identity
from advbench.grid.plan import Plan
from advbench.report.tables import to_csv

NO_DISTRIBUTIONS = ("python", "device")  # among the versions that rows state


class Checked(NamedTuple):
    """What a check found.

    Attributes:
        board: what was checked.
        identity: of its data.
        plan: its plan, with the keys of the version that made it.
        findings: what does not hold.
        dataset: its data set, if that was at hand.
    """

    board: Board
    identity: Identity
    plan: Plan
    findings: Findings
    dataset: Dataset | None


def check(folder: Path, data_root: str | None = None) -> Checked:
    """Check a board: that its pages follow from its tables, and that its tables can be true.

    The data set is loaded if that takes no download, or if the board does not say which data it is about.

    Args:
        folder: of the board.
        data_root: folder of the data sets.

    Raises:
        InputError: there is no board, a file of it cannot be read, or its data is needed and absent.
    """
    board, findings = load_board(folder), Findings()
    if staging.is_cut_off(folder):
        findings.add("a change of this board was cut off", "run the same 'advbench leaderboard merge' again")
    _check_installed(board)
    stated, dataset = read_identity(folder), data_at_hand(board.spec.dataset, data_root)
    if stated is None:
        dataset = dataset or load_dataset(board.spec.dataset, data_root)
        identity = identify(dataset)
    else:
        identity = stated
        _check_data(board, stated, dataset, data_root, findings)
    plan = plan_as_made(board.spec, identity, board.results, dataset)
    tables = Findings()
    check_content(board, plan, tables, dataset)
    findings.take(tables)
    if not tables:  # pages of tables that cannot be true say nothing more
        _check_pages(board, findings)
    return Checked(board, identity, plan, findings, dataset)


def _check_installed(board: Board) -> None:
    """What made the board must be there, or nothing is known of its plugins' settings and keys.

    Raises:
        InputError: a distribution is not installed.
    """
    stated = {item for text in board.results.versions.unique() for item in stated_versions(text).items()}
    for name, version in sorted(stated):
        try:
            importlib.metadata.version(name if name not in NO_DISTRIBUTIONS else "advbench")
        except (importlib.metadata.PackageNotFoundError, ValueError) as error:
            wanted = f"{name} {version}, by which rows of it were made"
            raise InputError(
                f"board {board.folder}", expected=wanted, got="none installed", remedy="install it"
            ) from error


def _check_data(
    board: Board, stated: Identity, dataset: Dataset | None, data_root: str | None, findings: Findings
) -> None:
    """Whether `data.json` is about the spec's data, and says of it what holds, as far as the data is at hand."""
    seen = None if dataset is None else identify(dataset)
    if seen is not None and (seen.data != stated.data or stated.shape not in (None, seen.shape)):
        what = f"it is {seen.data.name} of SHA-256 {seen.data.digest}, {seen.shape}"
        findings.add("data.json does not describe the data set", what)
    if not is_about(stated, board.spec):
        names = [stated.data.name, *(each.name for each in stated.ood)]
        findings.add("data.json is about other data than the spec", ", ".join(names))
        return
    for name, each in zip(board.spec.ood, stated.ood, strict=True):
        foreign = data_at_hand(name, data_root)
        if foreign is not None and foreign.digest != each.digest:
            findings.add("data.json does not describe the data set", f"{name} is of SHA-256 {foreign.digest}")


def check_content(board: Board, plan: Plan, findings: Findings, dataset: Dataset | None = None) -> None:
    """Check a board's rows and tables against its plan.

    Args:
        board: the board.
        plan: its plan, with the keys of the version that made it.
        findings: where it is noted what does not hold.
        dataset: its data set, where that is at hand.
    """
    classes = classes_of(board, dataset)
    check_rows(board.results, board.report.models, plan, findings, classes)
    check_tables(board, plan, findings, classes)
    check_curves(board, plan, findings)


def _check_pages(board: Board, findings: Findings) -> None:
    from advbench.report.page import without_figures

    for name, frame in board.report.tables().items():
        if name in board.present and _text(board.folder / name) != to_csv(frame).decode():
            findings.add("a table is not written as advbench writes it", name)
    for name, due in pages(board).items():
        found = _text(board.folder / name)
        # Another version of matplotlib draws the same figures in other words.
        strip = without_figures if name.endswith(".html") else str
        if found is None or strip(found) != strip(due):
            findings.add("a file is not what the tables give", f"{name}; 'advbench leaderboard build' makes it anew")


def _text(path: Path) -> str | None:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return None
