"""Checks of a board: keys match the spec, tables and README match the records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from advbench.boards.board import REFERENCES, Board, read_board, read_inside
from advbench.report.shape import flaw

SHOWS = {".csv", ".html", ".pdf", ".png", ".svg", ".tex"}  # suffixes of files that show results


class Findings:
    """Problems of a board, grouped by kind in order of first occurrence."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}
        self._remedy = ""

    def advise(self, remedy: str) -> None:
        """Set what to do about the problems, for `lines`."""
        self._remedy = remedy

    def add(self, kind: str, where: str) -> None:
        """Add a problem.

        Args:
            kind: its description, equal for all problems of the kind.
            where: file or cell of the problem, and details.
        """
        self._found.setdefault(kind, []).append(where)

    def __bool__(self) -> bool:
        return bool(self._found)

    def lines(self, *, advice: bool = False) -> Iterator[str]:
        """One line per kind, with the number of problems and the place of the first.

        Args:
            advice: end with a line that says what to do, if it is known.
        """
        for kind, places in self._found.items():
            line = f"{len(places)} times: {kind}, first {places[0]}" if len(places) > 1 else f"{kind}: {places[0]}"
            yield " ".join(line.split())
        if advice and self._remedy:
            yield self._remedy


def check(folder: Path) -> tuple[Board, Findings]:
    """Check a board without its data and without recomputation.

    A consistent forgery of a record with seal and tables is not detected; `rerun` recomputes cells for that.

    Returns:
        The board and its problems.

    Raises:
        InputError: the board cannot be read at all.
    """
    board, findings = read_board(folder), Findings()
    check_records(board, findings)
    if findings:
        findings.advise(f"take the records from their run's store: advbench leaderboard build {folder} --store STORE")
        return board, findings
    made = board.files()
    for name, raw in made.items():
        if not (folder / name).is_file():
            findings.add("a file derived from the records is missing", name)
        elif (there := read_inside(folder, name)) != raw:
            findings.add("a file does not match the records", f"{name}{_line(there, raw)}")
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        # Hidden folders are not published, and `references` contains results of others.
        ignored = place.parts[0] == REFERENCES or any(part.startswith(".") for part in place.parts)
        shows = path.suffix in SHOWS or path.stem == "leaderboard"
        if path.is_file() and shows and not ignored and place.as_posix() not in made:
            findings.add("a file shows results that are not derived from records", place.as_posix())
    if findings:
        findings.advise(f"if the records are right, run advbench leaderboard build {folder}")
    return board, findings


def check_records(board: Board, findings: Findings) -> None:
    """Check that every record is possible for a task of the spec."""
    kept = set(board.kept)
    for key, record in board.records.items():
        if key not in kept:
            findings.add("a record of another spec, data set or version of a plugin", _named(record, key))
            continue
        task = board.plan.tasks[key]
        if record.get("inputs") != task.inputs.to_json():
            findings.add("a record whose inputs do not match its key", task.label)
        elif record.get("kind") != task.kind:
            findings.add("a record whose kind does not match its key", task.label)
        elif found := flaw(record, task.inputs):
            findings.add("an impossible record", f"{task.label}: {found}")


def _named(record: dict[str, object], key: str) -> str:
    inputs = record.get("inputs")
    plugin = inputs.get("defense") or inputs.get("attack") if isinstance(inputs, dict) else None
    name = f" ({plugin.get('name')} {plugin.get('version')})" if isinstance(plugin, dict) else ""
    return f"{record.get('kind')} {key[:12]}{name}"


def _line(found: bytes, due: bytes) -> str:
    """The number of the first different line, as text."""
    pairs = zip(found.split(b"\n"), due.split(b"\n"), strict=False)
    number = next((number for number, (one, other) in enumerate(pairs, 1) if one != other), None)
    return "" if number is None else f", line {number}"
