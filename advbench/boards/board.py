"""A board is a folder: spec.toml, data.json, records, and the tables and README that follow from them to the byte."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from advbench.boards.records import NAME as RECORDS
from advbench.boards.records import Records
from advbench.errors import InputError
from advbench.grid.identity import DATA, Identity, blank, identity_text, is_about, read_identity
from advbench.grid.plan import Plan
from advbench.grid.run import lay_out
from advbench.grid.spec import RunSpec, make_spec, parse_toml
from advbench.registry import checkout_digest
from advbench.report import Report, collect
from advbench.report.markdown import render
from advbench.report.output import contents
from advbench.report.references import Reference, read_references
from advbench.store.records import Store
from advbench.store.storage import write_file

SPEC = "spec.toml"
ABOUT = "about.md"
README = "README.md"
REFERENCES = "references"
TABLES = ("csv",)  # formats of a report that a board keeps
MOST_CELLS = 1_000_000  # that a board's spec may lead to


@dataclass(frozen=True)
class Board:
    """What a board's folder holds.

    Attributes:
        folder: the folder.
        spec: what was computed.
        identity: the data that it was computed on.
        records: what trainings and evaluations found.
        about: what those who made it say of it, as Markdown.
    """

    folder: Path
    spec: RunSpec
    identity: Identity
    records: Records
    about: str = ""

    @cached_property
    def plan(self) -> Plan:
        """The run, laid out by the installed plugins; with the keys of a checkout if one made the records.

        Raises:
            InputError: an unknown plugin, a bad value in the spec, or nets that the images do not fit.
        """
        assert self.identity.shape is not None, "read_board refuses data without a shape"
        data = blank(self.identity.shape, self.identity.data.name)
        checkout = self.records.checkout if len(self.records) else checkout_digest()
        return lay_out(self.spec, self.identity, data, checkout=checkout)

    @cached_property
    def kept(self) -> tuple[str, ...]:
        """Keys of the tasks whose records a board keeps: trainings of its defenses, and evaluations."""
        plan = self.plan
        wanted = {*plan.trained.values(), *(cell.key for cell in plan.cells), *(cell.key for cell in plan.ood)}
        return tuple(key for key in plan.tasks if key in wanted)

    @cached_property
    def report(self) -> Report:
        """The tables, made from the records."""
        return collect(self.plan, self.records)

    def files(self) -> dict[str, bytes]:
        """The content of every file that follows from the others, by name."""
        tables = dict(contents(self.report, TABLES))
        return {**tables, README: self._readme().encode()}

    def references(self) -> list[Reference]:
        """Models that others evaluated, for the page."""
        folder = self.folder / REFERENCES
        return read_references([folder]) if folder.is_dir() else []

    @property
    def missing(self) -> int:
        """How many cells of the spec have no record."""
        return sum(key not in self.records for key in self._cells)

    @property
    def _cells(self) -> tuple[str, ...]:
        return (*(cell.key for cell in self.plan.cells), *(cell.key for cell in self.plan.ood))

    def _readme(self) -> str:
        cells = len(self._cells)
        root = "" if self.spec.dataset == "digits" else " --data-root PATH"
        origin = (
            f"## This board\n\n{cells - self.missing:,} of {cells:,} cells. `advbench leaderboard check .` checks that "
            "tables and README follow from the records, and keys from the spec; with `--rerun 3` it computes three "
            "cells anew, chosen at random. `advbench leaderboard build . --out PAGE` makes a page of it. It was "
            "computed by:\n\n"
            f"```sh\nadvbench run --spec spec.toml --store STORE --out RUN{root}\n"
            "advbench leaderboard build . --store STORE\n```\n"
        )
        return f"{render(self.report, self.about)}\n{origin}"


def read_board(folder: Path, *, empty: bool = False) -> Board:
    """Read a board's folder.

    Args:
        folder: the folder.
        empty: whether it may have no records yet.

    Raises:
        InputError: no such folder; a link in it; a file that is missing, damaged or too large.
    """
    if not folder.is_dir():
        raise InputError(f"board {folder}", expected="a folder", got="none of that name")
    refuse_links(folder)
    for name in (SPEC, DATA, *(() if empty else (RECORDS,))):
        if not (folder / name).is_file():
            remedy = "" if name == SPEC else "make it from a run's store: advbench leaderboard build --store STORE"
            raise InputError(f"board {folder}", expected=f"a file {name} in it", got="none", remedy=remedy)
    identity = read_identity(folder)
    spec = make_spec(parse_toml(folder / SPEC))
    if identity is None or identity.shape is None or not is_about(identity, spec):
        raise InputError(f"file {folder / DATA}", expected="the data sets of spec.toml, and their images' shape")
    check_size(spec, str(folder / SPEC))
    path = folder / RECORDS
    records = Records.from_bytes(read_bytes(path), str(path)) if path.is_file() else Records({})
    about = folder / ABOUT
    return Board(folder, spec, identity, records, _text(about) if about.is_file() else "")


def refuse_links(folder: Path) -> None:
    """Refuse a folder that holds a link or anything but files and folders: what is read or written lies inside.

    Raises:
        InputError: names it.
    """
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InputError(
                f"board {folder}", expected="files and folders alone", got=f"{path.name}, a link or device"
            )


def check_size(spec: RunSpec, what: str) -> None:
    """Refuse a spec of more cells than a board may have, before they are laid out.

    Raises:
        InputError: says how many.
    """
    cells = len(spec.seeds) * len(spec.defenses) ** 2 * len(spec.attacks) * len(spec.eps)
    if cells > MOST_CELLS:
        raise InputError(what, expected=f"at most {MOST_CELLS:,} cells", got=f"{cells:,}", remedy="split the board")


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"file {path}", expected="one that can be read", got=error.strerror or str(error)) from error


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode().strip()
    except UnicodeDecodeError as error:
        raise InputError(f"file {path}", expected="UTF-8 text", got=str(error)) from error


def build(folder: Path, store: Store | None = None, references: Iterable[Path] = ()) -> Board:
    """Make a board's records, tables and README: records are those that it has, and those of a store.

    Args:
        folder: with spec.toml and data.json at least.
        store: a store with results of the spec; None for the records that the board has.
        references: files or folders with results of others, which are copied into the board.

    Raises:
        InputError: a file is missing or cannot be read, or there is no record.
        StoreError: the folder cannot be written, or the store not read.
    """
    with locked(folder):
        board = read_board(folder, empty=store is not None)
        adopt(folder, references)
        if store is not None:
            keys = board.kept
            found = {key: each for key, each in zip(keys, store.read_records(keys), strict=True) if each is not None}
            board = with_records(board, Records(found).joined(board.records).only(board.kept))
        if not len(board.records):
            raise InputError(f"board {folder}", expected="at least one record of its spec", got="none")
        write(board, folder)
        return board


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other build of a board, or merge into it, is under way by this user on this machine.

    Raises:
        InputError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"board {folder}", expected="a folder", got="none of that name")
    place = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    with (Path(tempfile.gettempdir()) / f"advbench-{os.getuid()}-{place}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def with_records(board: Board, records: Records) -> Board:
    """The same board with other records."""
    return Board(board.folder, board.spec, board.identity, records, board.about)


def write(board: Board, folder: Path) -> None:
    """Write all files of a board but what its makers wrote by hand.

    Raises:
        StoreError: the folder cannot be written.
    """
    made = {
        SPEC: board.spec.to_toml().encode(),
        DATA: identity_text(board.identity).encode(),
        RECORDS: board.records.to_bytes(),
        **board.files(),
    }
    for name, raw in made.items():
        write_file(folder / name, raw)


def adopt(folder: Path, references: Iterable[Path]) -> None:
    """Copy results of others into a board, once they are known to be readable."""
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
