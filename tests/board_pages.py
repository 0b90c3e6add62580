"""What tests of boards share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from advbench.config import RunSpec
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
