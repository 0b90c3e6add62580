"""A board: a folder with spec.toml, data.json and records, and tables and README derived from them to the byte."""

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
from advbench.grid.inputs import Component
from advbench.grid.kept import (
    CORE,
    FOLDER,
    INDEX,
    Kept,
    content,
    digests,
    in_board,
    is_place,
    is_third_party,
    read_folder,
)
from advbench.grid.kept import parse as parse_kept
from advbench.grid.plan import Plan
from advbench.grid.run import WEIGHTS, keep, lay_out
from advbench.grid.spec import RunSpec, make_spec, published, read_toml, without_unused
from advbench.registry import checkout_digest, pinned
from advbench.registry.files import FILE, Sources
from advbench.report import Report, collect
from advbench.report.markdown import escape, render
from advbench.report.output import contents
from advbench.report.references import Reference, read_references
from advbench.report.shape import check_record
from advbench.store.records import Store
from advbench.store.storage import StoreWarning, write_file

SPEC = "spec.toml"
ABOUT = "about.md"
README = "README.md"
REFERENCES = "references"
FILES = (SPEC, DATA, RECORDS)  # all other files are derived from these
TABLES = ("csv",)  # formats of the report in a board
MOST_SEEDS, MOST_CELLS = 1000, 1_000_000  # limits on the spec of a board
LARGEST_TEXT = 2**20  # bytes; limit on text files


@dataclass(frozen=True)
class Board:
    """The content of a board's folder.

    Attributes:
        folder: path of the folder.
        spec: the run that was computed.
        identity: identity of the data that it was computed on.
        records: records of trainings and evaluations.
        about: the maintainers' description, as Markdown.
        kept_files: description of the plugins and nets in stored files, none of which is imported here, and of those of
            other distributions, which need not be installed.
        sources: content of those files, by digest.
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
        """Plan of the run with the installed plugins, with the keys of the sources that computed the records.

        Raises:
            InputError: a plugin is unknown, a value in the spec invalid, or images do not fit a net.
        """
        checkout = self.records.checkout if self.records else checkout_digest()
        return lay_out(self.spec, self.identity, self.identity.blank(), checkout=checkout, kept=self.kept_files)

    @cached_property
    def kept(self) -> tuple[str, ...]:
        """Keys of the tasks whose records a board contains: trainings of its defenses, and evaluations."""
        wanted = {*self.plan.trained.values(), *self.cells}
        return tuple(key for key in self.plan.tasks if key in wanted)

    @cached_property
    def cells(self) -> tuple[str, ...]:
        """Keys of the evaluations."""
        return tuple(self.plan.evaluations)

    @cached_property
    def report(self) -> Report:
        """Tables derived from the records."""
        return collect(self.plan, self.records)

    def files(self) -> dict[str, bytes]:
        """Content of each file that is derived from the records, by name."""
        tables = dict(contents(self.report, TABLES))
        kept = content(keep(self.plan), self.sources)
        return {**tables, **kept, README: self._readme().encode()}

    @cached_property
    def in_files(self) -> frozenset[str]:
        """Labels of the plugins that depend on stored files: for themselves, their net, source or initial weights."""
        stored = self.kept_files.in_files()
        own = {
            choice.label
            for choice in self.plan.choices()
            if any(each.label in stored.choices or (stored.net and each.net == stored.net) for each in choice.lineage)
        }
        return frozenset(own | set(stored.choices))

    @cached_property
    def needs(self) -> dict[str, list[Component]]:
        """Components that other distributions contain, by label of the plugins that depend on them."""
        found: dict[str, list[Component]] = {}
        for choice in self.plan.choices():
            for each in (part for start in choice.lineage for part in (start.component, start.net) if part):
                if is_third_party(each) and each not in found.setdefault(choice.label, []):
                    found[choice.label].append(each)
        return {label: parts for label, parts in found.items() if parts}

    def references(self) -> list[Reference]:
        """Results of models evaluated elsewhere, for the page."""
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
            "tables and README match the records, and keys the spec; with `--rerun 3` it recomputes three randomly "
            "chosen cells. `advbench leaderboard build . --out PAGE` writes an HTML page. "
        )
        if self.sources:
            names = ", ".join(f"`{label}`" for label in sorted(self.in_files))
            origin += (
                f"The code of {names} is in `{FOLDER}/`, with hyperparameters and digests in `{INDEX}`; no command "
                "imports it without `--run-files`. Read it first.\n"
            )
        else:
            origin += (
                "It was computed by:\n\n"
                f"```sh\nadvbench run --spec spec.toml --store STORE --out RUN{root}\n"
                "advbench leaderboard build . --store STORE\n```\n"
            )
        for label, parts in sorted(self.needs.items()):
            named = escape(" and ".join(map(described, parts)))
            origin += (
                f"\n`{label}` uses {named}, which is needed to recompute it and for nothing else. Hyperparameters and "
                f"version are in `{INDEX}`. Read it before you install it.\n"
            )
        from_files = [label for label, params in sorted(self.spec.set.items()) if pinned.digests(params)]
        if from_files:
            named = ", ".join(f"`{label}`" for label in from_files)
            origin += (
                f"\nThe weights of {named} are in files listed by SHA-256 in spec.toml; a run looks for them in the "
                f"folder `{WEIGHTS}` of the data root.\n"
            )
        return f"{render(self.report, self.about)}\n{origin}"


def described(component: Component) -> str:
    """A plugin with the distributions that it needs, such as `smooth of advbench-sample, version 1.2.3`."""
    of = "" if component.distribution in (CORE, FILE) else f" of {component.distribution}, version {component.version}"
    built_on = [f"{name} {version}" for name, version in (component.built_on or {}).items()]
    return f"{component.name}{of}" + (f" with {', '.join(built_on)}" if built_on else "")


def read_board(folder: Path, *, empty: bool = False) -> Board:
    """Read a board's folder.

    Args:
        folder: the folder.
        empty: allow a board without records.

    Raises:
        InputError: the folder does not exist or contains a link, or a file is missing, damaged or too large.
    """
    _check_folder(folder)
    for path in (folder, *folder.rglob("*")):  # so that all reads and writes stay inside
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            got = f"{path.name}, a link or device"
            raise InputError(f"board {folder}", expected="only files and folders", got=got)
    found = {name: read_inside(folder, name) for name in (*FILES, ABOUT) if (folder / name).is_file()}
    found |= read_folder(folder)
    for name in FILES:
        if name not in found and not (empty and name == RECORDS):
            remedy = "copy spec.toml and data.json from a run's --out folder, then run leaderboard build --store STORE"
            raise InputError(f"board {folder}", expected=f"a file {name} in it", got="none", remedy=remedy)
    return parse_board(folder, found)


def parse_board(path: Path, files: Mapping[str, bytes]) -> Board:
    """Parse the files of a board, which are not trusted.

    Args:
        path: path of the board's folder or archive, for messages.
        files: content of `FILES` (records are optional), of about.md if it exists, and of the files in `files/`.

    Raises:
        InputError: a file is damaged or too large.
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
    """Path of a file in an untrusted board, verified to be inside it.

    Raises:
        InputError: the file or its folder is a link, a device or a pipe, or lies outside the board.
    """
    path = folder / name
    if path.resolve() != folder.resolve() / name or (os.path.lexists(path) and not path.is_file()):
        expected = "an ordinary file inside the board"
        raise InputError(f"file {path}", expected=expected, got="a link, device, folder or place outside")
    return path


def read_inside(folder: Path, name: str | Path) -> bytes:
    """Read a file of a board.

    Raises:
        InputError: the file cannot be read, or lies outside the board.
    """
    path = inside(folder, name)
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            return file.read(LARGEST + 1)
    except OSError as error:
        raise InputError(f"file {path}", expected="a readable file", got=error.strerror or str(error)) from error


def write_inside(folder: Path, name: str | Path, raw: bytes) -> None:
    """Write a file of a board atomically.

    Raises:
        InputError: the file lies outside the board.
        StoreError: the folder cannot be written.
    """
    write_file(inside(folder, name), raw)


def build(folder: Path, store: Store | None = None, references: Iterable[Path] = ()) -> Board:
    """Write a board's records, tables and README from its own records and those of a store.

    Whatever belongs to defenses that the spec no longer names is removed: settings, files and records.

    Args:
        folder: folder with at least spec.toml and data.json.
        store: store to search for records of the board's keys.
        references: files or folders with results of others, to copy into the board.

    Raises:
        InputError: a file is missing or cannot be read, or there are no records.
        StoreError: the folder cannot be written, or the store cannot be read.
    """
    with locked(folder):
        board = _cleaned(read_board(folder, empty=store is not None))
        adopt(folder, references)
        if store is not None:
            keys = board.kept
            found = {key: each for key, each in zip(keys, store.read_records(keys), strict=True) if each is not None}
            if not found:
                _warn_of_no_record(board, store)
            board = replace(board, records=Records({**board.records, **found}))
        records = board.records.only(board.kept)
        if not records:
            raise InputError(f"board {folder}", expected="at least one record of its spec", got="none")
        if store is None and len(records) < min(len(board.records), len(board.kept)):
            raise InputError(
                f"board {folder}",
                expected="records of its spec",
                got=f"{len(board.records) - len(records)} of another spec, data set or version of a plugin",
                remedy="name the store that has the others, with --store; they are then dropped",
            )
        board = replace(board, records=records)
        for key in board.kept:
            if key in board.records:
                check_record(board.records[key], board.plan.tasks[key], f"board {folder}")
        write(board, folder)
        return board


def _cleaned(board: Board) -> Board:
    """A board without settings and files of plugins that its spec no longer uses."""
    spec = without_unused(board.spec, board.kept_files)
    unused = sorted({*board.spec.set, *board.spec.files} - {*spec.set, *spec.files})
    if unused:
        message = f"removed the settings or files of {', '.join(unused)}, which the spec of {board.folder} does not use"
        warnings.warn(message, StoreWarning, stacklevel=3)
    board = replace(board, spec=spec)
    kept = keep(board.plan)
    used = set().union(*map(digests, kept.components()))
    sources = {digest: each for digest, each in board.sources.items() if digest in used}
    return replace(board, kept_files=kept, sources=sources)


def _warn_of_no_record(board: Board, store: Store) -> None:
    """Warn why a store has no records for a board."""
    theirs, own = board.records.checkout, checkout_digest()
    reason = "it has no records of the board's spec, data and plugin versions"
    if board.records and theirs != own:
        reason = (
            f"the board was computed by {sources(theirs)}, this installation is {sources(own)}, and keys differ; "
            "use an installation like the board's"
        )
    warnings.warn(f"no record was taken from store {store.storage.url}: {reason}", StoreWarning, stacklevel=3)


def sources(checkout: str | None) -> str:
    """Description of the sources that compute results: a release, or the digest of a checkout."""
    return "a release" if checkout is None else f"a checkout with sources {checkout}"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on a board, against other builds and merges of any user.

    The parent folder is locked: a merge replaces the board's own folder, a lock file could be published by accident,
    and the lock is released if its holder dies.

    Raises:
        InputError: the folder does not exist.
    """
    _check_folder(folder)
    parent = folder.resolve().parent
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(parent, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems cannot lock folders
            message = f"cannot lock {parent}: {error.strerror or error}; do not run another build or merge there"
            warnings.warn(message, StoreWarning, stacklevel=4)
        yield


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"board {folder}", expected="an existing folder", got="none")


def write(board: Board, folder: Path) -> None:
    """Write all files of a board except those written by hand.

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
    for name in read_folder(folder).keys() - made.keys():  # files of former plugins
        path = inside(folder, name)
        path.unlink()
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def adopt(folder: Path, references: Iterable[Path]) -> None:
    """Copy results of others into a board, after verifying that all can be read."""
    given = list(references)
    read_references(given)
    into = folder / REFERENCES
    copies: dict[Path, bytes] = {}
    for path in given:
        for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            if file.resolve().is_relative_to(into.resolve()):
                continue
            # RobustBench's layout is DATASET/NORM/MODEL.json: the norm is only in the folder's name.
            target = Path(REFERENCES, *file.resolve().parts[1:][-3:])
            raw = file.read_bytes()
            if copies.setdefault(target, raw) != raw:
                raise InputError(f"reference {file}", expected="one file per name", got=f"another for {target}")
    for target, raw in copies.items():
        write_inside(folder, target, raw)
