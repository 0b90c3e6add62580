"""Checks a board: keys follow from the spec, seals hold, tables and README follow from the records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from advbench.boards.board import REFERENCES, Board, read_board, read_bytes
from advbench.boards.findings import Findings
from advbench.boards.shape import flaw

SHOWS = {".csv", ".html", ".pdf", ".png", ".svg", ".tex"}  # endings of files that show results


def check(folder: Path) -> tuple[Board, Findings]:
    """Check a board, without its data and without computing anything.

    A record that was made up as a whole, with its seal and tables, is not found out here: `rerun` computes cells anew.

    Returns:
        The board, and what does not hold of it.

    Raises:
        InputError: it cannot be read at all.
    """
    board, findings = read_board(folder), Findings()
    check_records(board, findings)
    if not findings:
        made = board.files()
        for name, raw in made.items():
            path = folder / name
            if not path.is_file():
                findings.add("a file is missing that follows from the records", name)
            elif read_bytes(path) != raw:
                findings.add("a file is not what the records say", f"{name}{_line(read_bytes(path), raw)}")
        for name in _others(folder):
            if name not in made:
                findings.add("a file that shows results and that no record leads to", name)
    return board, findings


def _others(folder: Path) -> Iterator[str]:
    """Files that show results, but for those of others in `references` and what hidden folders hold."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        shows = path.suffix in SHOWS or path.stem == "leaderboard"
        if path.is_file() and shows and not hidden and name.parts[0] != REFERENCES:
            yield name.as_posix()


def check_records(board: Board, findings: Findings) -> None:
    """Whether all records are of tasks that the spec leads to."""
    kept = set(board.kept)
    for key in board.records:
        record = board.records.read_record(key) or {}
        if key not in kept:
            findings.add("a record of another spec, data set or version of a plugin", _named(record, key))
        elif record.get("inputs") != board.plan.tasks[key].inputs.to_json():
            findings.add("a record whose inputs are not those of its key", board.plan.tasks[key].label)
        elif record.get("kind") != board.plan.tasks[key].kind:
            findings.add("a record of another kind than its key's", board.plan.tasks[key].label)
        elif found := flaw(record, board.plan.tasks[key].inputs):
            findings.add("a record that no task leaves", f"{board.plan.tasks[key].label}: {found}")


def _named(record: dict[str, object], key: str) -> str:
    inputs = record.get("inputs")
    plugin = inputs.get("defense") or inputs.get("attack") if isinstance(inputs, dict) else None
    name = f" ({plugin.get('name')} {plugin.get('version')})" if isinstance(plugin, dict) else ""
    return f"{record.get('kind')} {key[:12]}{name}"


def _line(found: bytes, due: bytes) -> str:
    """The first line that differs."""
    pairs = zip(found.split(b"\n"), due.split(b"\n"), strict=False)
    number = next((number for number, (one, other) in enumerate(pairs, 1) if one != other), None)
    return "" if number is None else f", line {number}"
