"""A board: a folder with spec.toml, data.json, records, and the tables and README that follow from them to the byte."""

from __future__ import annotations

import contextlib
import fcntl
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from advbench.boards.records import LARGEST, Records
from advbench.boards.records import NAME as RECORDS
from advbench.errors import InputError
from advbench.grid.identity import DATA, Identity, is_about, parse_identity
from advbench.grid.kept import FOLDER, INDEX, Kept, content, in_board, is_place, read_folder
from advbench.grid.kept import parse as parse_kept
from advbench.grid.plan import Plan
from advbench.grid.run import WEIGHTS, keep, lay_out
from advbench.grid.spec import Choice, RunSpec, make_spec, published, read_toml
from advbench.registry import checkout_digest, pinned
from advbench.registry.files import Sources
from advbench.report import Report, collect
from advbench.report.markdown import render
from advbench.report.output import contents
from advbench.report.references import Reference, read_references
from advbench.report.shape import check_record
from advbench.store.records import Store
from advbench.store.storage import StoreWarning, write_file

SPEC = "spec.toml"
ABOUT = "about.md"
README = "README.md"
REFERENCES = "references"
FILES = (SPEC, DATA, RECORDS)  # from which all others follow
TABLES = ("csv",)  # formats of a report that a board keeps
MOST_SEEDS, MOST_CELLS = 1000, 1_000_000  # that the spec of a board may state
LARGEST_TEXT = 2**20  # bytes of a file of text


@dataclass(frozen=True)
class Board:
    """The content of a board's folder.

    Attributes:
        folder: the folder.
        spec: the run that was computed.
        identity: the data that it was computed on.
        records: records of trainings and evaluations.
        about: its makers' description, as Markdown.
        kept_files: what it keeps of the files that plugins and nets are in, of which nothing here is imported.
        sources: those files, by digest.
    """

    folder: Path
    spec: RunSpec
    identity: Identity
    records: Records
    about: str = ""
    kept_files: Kept = field(default_factory=Kept)
    sources: Mapping[str, Sources] = field(default_factory=dict)

    @cached_property
    def plan(self) -> Plan:
        """The run as the installed plugins lay it out, with the keys of the sources that made the records.

        Raises:
            InputError: an unknown plugin, a bad value in the spec, or images that do not fit a net.
        """
        checkout = self.records.checkout if self.records else checkout_digest()
        return lay_out(self.spec, self.identity, self.identity.blank(), checkout=checkout, kept=self.kept_files)

    @cached_property
    def kept(self) -> tuple[str, ...]:
        """Keys of the tasks whose records a board keeps: trainings of its defenses, and evaluations."""
        wanted = {*self.plan.trained.values(), *self.cells}
        return tuple(key for key in self.plan.tasks if key in wanted)

    @cached_property
    def cells(self) -> tuple[str, ...]:
        """Keys of the evaluations."""
        return tuple(self.plan.evaluations)

    @cached_property
    def report(self) -> Report:
        """The tables that follow from the records."""
        return collect(self.plan, self.records)

    def files(self) -> dict[str, bytes]:
        """Content of each file that follows from the records, by name."""
        tables = dict(contents(self.report, TABLES))
        kept = content(keep(self.plan), self.sources)
        return {**tables, **kept, README: self._readme().encode()}

    @cached_property
    def in_files(self) -> frozenset[str]:
        """Labels of the plugins that only files compute: they, their net, their source or their start is in one."""
        found = set(self.kept_files.choices)
        net = self.kept_files.net is not None
        choices = [each for cell in self.plan.cells for each in (cell.defense, cell.attack) if each]
        for choice in choices:
            start: Choice | None = choice
            while start:
                if start.label in found or (net and start.net == self.kept_files.net):
                    found.add(choice.label)
                start = start.init
        return frozenset(found)

    def references(self) -> list[Reference]:
        """Results of models that others evaluated, for the page."""
        folder = self.folder / REFERENCES
        return read_references([folder]) if folder.is_dir() else []

    @property
    def missing(self) -> int:
        """Number of the spec's cells without a record."""
        return sum(key not in self.records for key in self.cells)

    def _readme(self) -> str:
        cells = len(self.cells)
        root = "" if self.spec.dataset == "digits" else " --data-root PATH"
        origin = (
            f"## This board\n\n{cells - self.missing:,} of {cells:,} cells. `advbench leaderboard check .` checks that "
            "tables and README follow from the records, and keys from the spec; with `--rerun 3` it computes three "
            "cells anew, chosen at random. `advbench leaderboard build . --out PAGE` makes a page of it. "
        )
        if self.sources:
            names = ", ".join(f"`{label}`" for label in sorted(self.in_files))
            origin += (
                f"The code of {names} is in `{FOLDER}/`, with hyperparameters and digests in `{INDEX}`; no command "
                "imports it but `advbench leaderboard check . --rerun 3 --run-files`. Read it before you do.\n"
            )
        else:
            origin += (
                "It was computed by:\n\n"
                f"```sh\nadvbench run --spec spec.toml --store STORE --out RUN{root}\n"
                "advbench leaderboard build . --store STORE\n```\n"
            )
        from_files = [label for label, params in sorted(self.spec.set.items()) if pinned.digests(params)]
        if from_files:
            named = ", ".join(f"`{label}`" for label in from_files)
            origin += (
                f"\nThe weights of {named} are in files whose SHA-256 spec.toml has; a run looks for them in the "
                f"folder `{WEIGHTS}` of the data root.\n"
            )
        return f"{render(self.report, self.about)}\n{origin}"


def read_board(folder: Path, *, empty: bool = False) -> Board:
    """Read a board's folder.

    Args:
        folder: the folder.
        empty: whether it may lack records.

    Raises:
        InputError: no such folder; a link in it; a file that is missing, damaged or too large.
    """
    _check_folder(folder)
    for path in (folder, *folder.rglob("*")):  # so that whatever is read or written lies inside
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            got = f"{path.name}, a link or device"
            raise InputError(f"board {folder}", expected="nothing but files and folders", got=got)
    found = {name: read_inside(folder, name) for name in (*FILES, ABOUT) if (folder / name).is_file()}
    found |= read_folder(folder)
    for name in FILES:
        if name not in found and not (empty and name == RECORDS):
            remedy = "" if name == SPEC else "make it from a run's store: advbench leaderboard build --store STORE"
            raise InputError(f"board {folder}", expected=f"a file {name} in it", got="none", remedy=remedy)
    return parse_board(folder, found)


def parse_board(path: Path, files: Mapping[str, bytes]) -> Board:
    """Parse the files of a board, which are not trusted.

    Args:
        path: the board's folder, or the archive that the files are from.
        files: content of `FILES`, perhaps without records, of about.md, if there is one, and of what is in `files/`.

    Raises:
        InputError: a file that is damaged or too large.
    """
    for name in (SPEC, DATA, ABOUT):
        if len(files.get(name, b"")) > LARGEST_TEXT:
            raise InputError(f"{name} of {path}", expected=f"at most {LARGEST_TEXT:,} bytes", got="more")
    values = read_toml(files[SPEC], f"{SPEC} of {path}")
    try:
        spec = make_spec(values)
    except InputError as error:
        raise InputError(f"{SPEC} of {path}: {error}") from error
    places, count = len(spec.attacks) * len(spec.eps), len(spec.defenses)
    cells = count**2 * places + count * len(spec.ood) * (1 + places)
    for what, count, most in (
        ("seeds", len(spec.seeds), MOST_SEEDS),
        ("cells (seeds x defenses x sources x attacks x eps)", len(spec.seeds) * cells, MOST_CELLS),
    ):
        if count > most:
            expected = f"at most {most:,} {what}"
            raise InputError(f"{SPEC} of {path}", expected=expected, got=f"{count:,}", remedy="split the board")
    try:
        identity = parse_identity(files[DATA])
    except ValueError as error:
        raise InputError(f"{DATA} of {path}", expected="the data.json of a run", got=str(error)) from error
    try:
        about = files.get(ABOUT, b"").decode().strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{ABOUT} of {path}", expected="UTF-8 text", got=str(error)) from error
    if not is_about(identity, spec):
        raise InputError(f"{DATA} of {path}", expected="the data sets of spec.toml")
    records = Records.from_bytes(files[RECORDS], f"{RECORDS} of {path}") if RECORDS in files else Records()
    kept, sources = parse_kept({name: raw for name, raw in files.items() if is_place(name)}, str(path))
    spec = published(in_board(spec, kept, f"{SPEC} of {path}"), f"{SPEC} of {path}")
    return Board(path, spec, identity, records, about, kept, sources)


def inside(folder: Path, name: str | Path) -> Path:
    """The path of a file of a board, which anybody may have made: it is where its name says.

    Raises:
        InputError: it, or the folder that it is in, is a link, a device or a pipe, or lies elsewhere.
    """
    path = folder / name
    if path.resolve() != folder.resolve() / name or (os.path.lexists(path) and not path.is_file()):
        expected = "an ordinary file inside the board"
        raise InputError(f"file {path}", expected=expected, got="a link, device, folder or place outside")
    return path


def read_inside(folder: Path, name: str | Path) -> bytes:
    """The bytes of a file of a board.

    Raises:
        InputError: it cannot be read, or not without leaving the board.
    """
    path = inside(folder, name)
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            return file.read(LARGEST + 1)
    except OSError as error:
        raise InputError(f"file {path}", expected="a readable file", got=error.strerror or str(error)) from error


def write_inside(folder: Path, name: str | Path, raw: bytes) -> None:
    """Write a file of a board, whole or not at all.

    Raises:
        InputError: it cannot be written without leaving the board.
        StoreError: the folder cannot be written.
    """
    write_file(inside(folder, name), raw)


def build(folder: Path, store: Store | None = None, references: Iterable[Path] = ()) -> Board:
    """Write a board's records, tables and README, from the records that it has and those of a store.

    Args:
        folder: with spec.toml and data.json at least.
        store: a store with results of the spec, which is searched for the board's keys.
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
            if not found:
                _warn_of_no_record(board, store)
            board = replace(board, records=Records({**board.records, **found}).only(keys))
        if not board.records:
            raise InputError(f"board {folder}", expected="at least one record of its spec", got="none")
        for key in board.kept:
            if key in board.records:
                check_record(board.records[key], board.plan.tasks[key], f"board {folder}")
        write(board, folder)
        return board


def _warn_of_no_record(board: Board, store: Store) -> None:
    """Report why a store has no record for a board."""
    theirs, own = board.records.checkout, checkout_digest()
    reason = "it has none of the board's spec, data and versions of plugins"
    if board.records and theirs != own:
        reason = (
            f"the board was computed by {sources(theirs)}, this installation is {sources(own)}, and their keys differ; "
            "compute the results with an installation like the board's"
        )
    warnings.warn(f"no record was taken from store {store.storage.url}: {reason}", StoreWarning, stacklevel=3)


def sources(checkout: str | None) -> str:
    """The sources that compute results, in words: a release, or the digest of a checkout."""
    return "a release" if checkout is None else f"a checkout with sources {checkout}"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait for other builds of a board and merges into it, and keep them waiting, whoever runs them.

    The lock is on the board's parent folder: it outlives the board's own folder, which a merge replaces, needs no file
    that could be published, and is released when its holder dies.

    Raises:
        InputError: there is no such folder.
    """
    _check_folder(folder)
    parent = folder.resolve().parent
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(parent, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems lock no folders
            message = f"cannot lock {parent}: {error.strerror or error}; run no other build or merge there meanwhile"
            warnings.warn(message, StoreWarning, stacklevel=4)
        yield


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"board {folder}", expected="a folder", got="none of that name")


def write(board: Board, folder: Path) -> None:
    """Write all files of a board but those that its makers write by hand.

    Raises:
        StoreError: the folder cannot be written.
    """
    made = {
        SPEC: board.spec.to_toml().encode(),
        DATA: board.identity.to_bytes(),
        RECORDS: board.records.to_bytes(),
        **board.files(),
    }
    for name, raw in made.items():
        write_inside(folder, name, raw)
    for name in read_folder(folder).keys() - made.keys():  # of plugins that it had
        path = inside(folder, name)
        path.unlink()
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def adopt(folder: Path, references: Iterable[Path]) -> None:
    """Copy results of others into a board, if all can be read."""
    given = list(references)
    read_references(given)
    into = folder / REFERENCES
    copies: dict[Path, bytes] = {}
    for path in given:
        for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            if file.resolve().is_relative_to(into.resolve()):
                continue
            # RobustBench's layout is DATASET/NORM/MODEL.json: the norm is in the folder's name alone.
            target = Path(REFERENCES, *file.resolve().parts[1:][-3:])
            raw = file.read_bytes()
            if copies.setdefault(target, raw) != raw:
                raise InputError(f"reference {file}", expected="one file per name", got=f"another for {target}")
    for target, raw in copies.items():
        write_inside(folder, target, raw)
