"""Static site of all boards below a folder: an index, and page, spec and tables of each board."""

from __future__ import annotations

import re
from pathlib import Path

from advbench.boards.board import SPEC, read_inside
from advbench.boards.check import Findings, check
from advbench.errors import InputError
from advbench.report.page import IndexEntry, headline, render_index, render_page
from advbench.report.views import title

INDEX = "index.html"


def site_files(folder: Path, date: str) -> dict[str, bytes] | Findings:
    """Content of each file of a site by path, the index last; no code of a board is imported.

    Args:
        folder: folder with boards at any depth; each is checked.
        date: date of the build.

    Returns:
        The files, or the problems of the boards that fail their check.

    Raises:
        InputError: a board cannot be read, or there are no boards.
    """
    findings, entries = Findings(), []
    files: dict[str, bytes] = {}
    for place in _places(folder):
        board, problems = check(folder / place)
        at = folder.resolve().name if place == Path() else place.as_posix()  # the folder itself may be a board
        for line in problems.lines():
            findings.add(f"board {at}", line)
        if findings:
            continue
        made = {SPEC: read_inside(board.folder, SPEC)}
        made |= {name: raw for name, raw in board.files().items() if name.endswith(".csv")}
        home = "/".join([".."] * len(Path(at).parts) + [INDEX])
        page = render_page(board.report, board.references(), list(made), board.about, date=date, board=at, home=home)
        finding, counts = headline(board.report, board.about), (len(board.spec.defenses), len(board.cells))
        entries.append(IndexEntry(at, f"{at}/{INDEX}", title(board.report), finding, *counts, board.missing))
        files |= {f"{at}/{name}": raw for name, raw in {**made, INDEX: page.encode()}.items()}
    return findings or files | {INDEX: render_index(entries, date).encode()}


def _natural(path: Path) -> list[list[tuple[str, int]]]:
    """Sort key of a path in which numbers count by value: draws5 before draws10."""
    return [[(text, int(n or 0)) for text, n in re.findall(r"(\D*)(\d*)", part)] for part in path.parts]


def _places(folder: Path) -> list[Path]:
    """Folders of the boards, relative to `folder`; hidden ones and those inside a board are skipped."""
    found: list[Path] = []
    for path in sorted(folder.rglob(SPEC), key=_natural):
        place = path.parent.relative_to(folder)
        hidden = any(part.startswith(".") for part in place.parts)
        if not hidden and not any(place.is_relative_to(outer) for outer in found):
            found.append(place)
    if not found:
        got = "none" if folder.is_dir() else "no such folder"
        raise InputError(f"folder {folder}", expected=f"boards (folders with {SPEC}) below it", got=got)
    return found
