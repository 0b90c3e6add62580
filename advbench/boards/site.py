"""Static site of all boards below a folder: an index, and page, spec and tables of each board."""

from __future__ import annotations

from collections import Counter
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
        page = render_page(board.report, board.references(), list(made), board.about, date=date, board=Path(at).name)
        entry = IndexEntry(
            link=f"{at}/{INDEX}",
            title=title(board.report),
            finding=headline(board.report, board.about),
            defenses=len(board.spec.defenses),
            cells=len(board.cells),
            missing=board.missing,
            downloads=[f"{at}/{name}" for name in made],
        )
        entries.append(entry)
        files |= {f"{at}/{name}": raw for name, raw in {**made, INDEX: page.encode()}.items()}
    titles = Counter(entry.title for entry in entries)
    named = [
        entry._replace(title=f"{entry.title} ({entry.link.removesuffix(f'/{INDEX}')})")
        if titles[entry.title] > 1
        else entry
        for entry in entries
    ]
    return findings or files | {INDEX: render_index(named, date).encode()}


def _places(folder: Path) -> list[Path]:
    """Folders of the boards, relative to `folder`; hidden ones and those inside a board are skipped."""
    found: list[Path] = []
    for path in sorted(folder.rglob(SPEC), key=lambda path: path.parts):
        place = path.parent.relative_to(folder)
        hidden = any(part.startswith(".") for part in place.parts)
        if not hidden and not any(place.is_relative_to(outer) for outer in found):
            found.append(place)
    if not found:
        got = "none" if folder.is_dir() else "no such folder"
        raise InputError(f"folder {folder}", expected=f"boards (folders with {SPEC}) below it", got=got)
    return found
