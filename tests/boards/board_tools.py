"""What tests of boards share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from advbench.boards import load_board
from advbench.boards.check import check, check_content
from advbench.boards.findings import Findings
from advbench.boards.plans import data_at_hand, plan_as_made
from advbench.grid.identity import read_identity
from advbench.grid.spec import RunSpec
from advbench.report import Report
from advbench.report.page import render_page
from advbench.report.references import Reference
from advbench.report.tables import to_csv


@contextmanager
def pages_drawn_once() -> Iterator[None]:
    """Boards' pages are made as ever, but only once for the same tables: their figures take a second to draw."""
    drawn: dict[tuple[object, ...], str] = {}

    def remembered(
        report: Report, spec: RunSpec | None = None, references: Sequence[Reference] = (), **more: Any
    ) -> str:
        known = (*map(to_csv, report.tables().values()), repr(spec), *map(repr, references), repr(more))
        if known not in drawn:
            drawn[known] = render_page(report, spec, references, **more)
        return drawn[known]

    with pytest.MonkeyPatch.context() as patch:
        for place in ("advbench.boards.board", "advbench.report.page"):
            patch.setattr(f"{place}.render_page", remembered)
        yield


def lines(folder: Path) -> list[str]:
    return list(check(folder).findings.lines())


def contents(folder: Path) -> list[str]:
    """What is wrong with the tables, whatever the pages say: as it would be once they were made anew."""
    findings, board = Findings(), load_board(folder)
    identity, dataset = read_identity(folder), data_at_hand(board.spec.dataset, None)
    assert identity is not None
    check_content(board, plan_as_made(board.spec, identity, board.results, dataset), findings)
    return list(findings.lines())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit(folder: Path, table: str, change: Callable[[pd.DataFrame], object]) -> None:
    """Change a table by its text, as an editor would."""
    path = folder / f"{table}.csv"
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    changed = change(frame)
    (changed if isinstance(changed, pd.DataFrame) else frame).to_csv(path, index=False, lineterminator="\n")
