"""Adds a submission to a board: whole or not at all, checked before and after, one merge at a time."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from advbench.boards.board import Board, with_records, write
from advbench.boards.check import check, check_records
from advbench.boards.findings import Findings
from advbench.boards.submission import open_submission
from advbench.errors import InputError, StoreError
from advbench.grid.spec import RunSpec, make_spec

SETTINGS = (
    "dataset architecture norm eps seeds draws limit batch_size precision threads sweep budget ood ood_scale".split()
)
_EXCHANGE = 2  # of renameat2: the two names change places at once
_HERE = -100  # of renameat2: paths are relative to the working folder


@dataclass(frozen=True)
class Merged:
    """What a merge did.

    Attributes:
        label: the defense that was added.
        records: how many records it brought.
        missing: how many cells of the board have no record now.
    """

    label: str
    records: int
    missing: int


def merge(folder: Path, file: Path, *, replacing: bool = False) -> Merged | Findings:
    """Add a submission to a board, or nothing where anything does not hold.

    Args:
        folder: of the board.
        file: the submission.
        replacing: take the place of a defense of the same label.

    Returns:
        What was added, or what does not hold of board or submission.

    Raises:
        InputError: one of them cannot be read, they do not fit, or the label is taken.
        StoreError: the folder cannot be written.
    """
    with _locked(folder):
        board, findings = check(folder)
        theirs = open_submission(file)
        check_records(theirs, findings)
        if findings:
            return findings
        _check_fit(board, theirs)
        (label,) = theirs.spec.defenses
        if label in board.spec.defenses and not replacing:
            raise InputError(
                f"defense {label!r} is on the board already",
                remedy="--replace takes its place, or give it another @label",
            )
        joined = Board(folder, _joined(board.spec, theirs.spec), board.identity, theirs.records, board.about)
        whole = with_records(joined, theirs.records.joined(board.records).only(joined.kept))
        lost = [key for key in theirs.records if key not in whole.records]
        if lost:
            raise InputError(
                f"submission {file}", expected="records of the board's settings", got=f"{len(lost)} others"
            )
        _replace(whole, folder)
        return Merged(label, len(theirs.records), whole.missing)


def _check_fit(board: Board, theirs: Board) -> None:
    """Refuse a submission under other settings than the board's."""
    for name in SETTINGS:
        ours, other = getattr(board.spec, name), getattr(theirs.spec, name)
        if ours != other and not (name == "dataset" and theirs.identity.data == board.identity.data):
            raise InputError(f"setting {name!r} of the submission", expected=f"the board's {ours!r}", got=repr(other))
    if theirs.identity != board.identity:
        raise InputError("data of the submission", expected="the board's, by SHA-256", got="others")
    missing = [name for name in board.spec.attacks if name not in theirs.spec.attacks]
    if missing:
        raise InputError("attacks of the submission", expected="all of the board's", got=f"none of {missing[0]!r}")


def _joined(ours: RunSpec, theirs: RunSpec) -> RunSpec:
    """The board's spec with the submission's defense, and the settings that it needs."""
    (label,) = theirs.defenses
    settings = dict(ours.set)
    for name, params in theirs.set.items():
        if name in ours.attacks:
            continue
        if name != label and settings.get(name, params) != params:
            raise InputError(
                f"setting of {name!r} in the submission", expected=f"the board's {settings[name]}", got=params
            )
        settings[name] = params
    if label in settings and label not in theirs.set:
        del settings[label]
    defenses = ours.defenses if label in ours.defenses else (*ours.defenses, label)
    return make_spec({**ours.model_dump(), "defenses": defenses, "set": settings})


def _replace(board: Board, folder: Path) -> None:
    """Put a board in the place of the one in a folder, at once."""
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        shutil.copytree(folder, made, dirs_exist_ok=True)
        write(board, made)
        _, findings = check(made)
        assert not findings, f"a merged board holds: {list(findings.lines())}"
        _exchange(made, folder)
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {error.strerror or error}", remedy="check its permissions") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _exchange(one: Path, other: Path) -> None:
    """Let two folders change places, at once where the system can."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        done = libc.renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)
        if done == 0:
            return
    aside = one.with_name(f"{one.name}-before")
    other.rename(aside)
    one.rename(other)
    aside.rename(one)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other merge into that folder is under way."""
    path = folder.absolute()
    if not path.parent.is_dir():
        raise InputError(f"board {folder}", expected="a folder", got="none of that name")
    lock = Path(tempfile.gettempdir()) / f"advbench-{os.getuid()}-{_name(path)}.lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _name(path: Path) -> str:
    import hashlib

    return hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
