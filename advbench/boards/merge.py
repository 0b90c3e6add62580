"""Adds a submission to a board: whole or not at all, checked before and after, one merge at a time."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from advbench.boards.board import Board, locked, with_records, write
from advbench.boards.check import check, check_records
from advbench.boards.findings import Findings
from advbench.boards.records import Records
from advbench.boards.submission import open_submission
from advbench.errors import InputError, StoreError
from advbench.grid.plan import Plan
from advbench.grid.spec import RunSpec, make_spec, narrowed
from advbench.store.archive import said

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
    folder = Path(os.path.abspath(folder))  # whose name `.` does not tell; a link stays one, and is refused
    if Path.cwd().is_relative_to(folder.resolve()):
        raise InputError(
            "working folder", expected="one outside the board, whose folder is replaced", remedy=f"cd {folder.parent}"
        )
    with locked(folder):
        for left in folder.parent.glob(f"{_beside(folder)}*"):
            shutil.rmtree(left, ignore_errors=True)  # by a merge that was killed
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
        joined = Board(folder, _joined(board.spec, theirs.spec), board.identity, board.records, board.about)
        own = _own_keys(board.plan, label)
        _check_others_stay(board, joined, own, file)
        whole = with_records(joined, _with_theirs(joined, theirs, own, file))
        _replace(whole, folder)
        return Merged(label, sum(key in whole.records for key in theirs.records), whole.missing)


def _own_keys(plan: Plan, label: str) -> set[str]:
    """Keys of the tasks that say something of one defense and of none that is under another label."""
    own, others = set[str](), set[str]()
    for (name, _), key in plan.trained.items():
        (own if name == label else others).add(key)
    for cell in plan.cells:
        (own if label in (cell.defense.label, cell.source.label) else others).add(cell.key)
    for each in plan.ood:
        (own if each.defense.label == label else others).add(each.key)
    return own - others


def _check_others_stay(board: Board, joined: Board, own: set[str], file: Path) -> None:
    """Refuse a submission by which other defenses of the board would become others, and lose their records."""
    lost = set(board.kept) - set(joined.kept) - own
    names = sorted({cell.defense.label for cell in board.plan.cells if cell.key in lost})
    if lost:
        raise InputError(
            f"submission {file}",
            expected="one that leaves the board's other defenses as they are",
            got=f"other settings, weights or sources of {', '.join(names)}",
            remedy="give the defense, and what it starts from, a @label of its own",
        )


def _with_theirs(joined: Board, theirs: Board, own: set[str], file: Path) -> Records:
    """The board's records, and the submission's where they are new or take the place of the defense's own.

    Raises:
        InputError: the submission has records of other settings, or says otherwise of what the board has.
    """
    kept, ours = set(joined.kept), joined.records
    extra = {cell.key for cell in theirs.plan.cells if cell.attack and cell.attack.label not in joined.spec.attacks}
    strange = [key for key in theirs.records if key not in kept and key not in extra]
    if strange:
        raise InputError(f"submission {file}", expected="records of the board's settings", got=f"{len(strange)} others")
    known = [key for key in theirs.records if key in ours and key not in own]
    if any(said(ours.read_record(key) or {}) != said(theirs.records.read_record(key) or {}) for key in known):
        raise InputError(
            f"submission {file}",
            expected="what the board says of the same weights and images",
            got="other results under the same keys",
            remedy="a defense with the hyperparameters of one that the board has adds nothing",
        )
    return theirs.records.only(key for key in theirs.records if key not in known).joined(ours).only(joined.kept)


def _check_fit(board: Board, theirs: Board) -> None:
    """Refuse a submission under other settings than the board's."""
    for name in SETTINGS:
        ours, other = getattr(board.spec, name), getattr(theirs.spec, name)
        if ours != other and not (name == "dataset" and theirs.identity.data == board.identity.data):
            raise InputError(f"setting {name!r} of the submission", expected=f"the board's {ours!r}", got=repr(other))
    if theirs.identity != board.identity:
        raise InputError("data of the submission", expected="the board's, by SHA-256", got="others")
    made_by = [each.records.checkout or "an installed release" for each in (board, theirs)]
    if len(board.records) and made_by[0] != made_by[1]:
        raise InputError(
            "sources that made the submission",
            expected=f"the board's: {made_by[0]}",
            got=made_by[1],
            remedy="compute it with an installation of the same kind (pip install, without -e, is a release)",
        )
    missing = [name for name in board.spec.attacks if name not in theirs.spec.attacks]
    if missing:
        raise InputError("attacks of the submission", expected="all of the board's", got=f"none of {missing[0]!r}")


def _joined(ours: RunSpec, theirs: RunSpec) -> RunSpec:
    """The board's spec with the submission's defense, and the settings that it needs."""
    (label,) = theirs.defenses
    part = narrowed(theirs.model_copy(update={"attacks": ours.attacks}), theirs, theirs.set)
    settings = {**ours.set, **{name: params for name, params in part.set.items() if name not in ours.attacks}}
    if label in settings and label not in theirs.set:
        del settings[label]
    defenses = ours.defenses if label in ours.defenses else (*ours.defenses, label)
    return make_spec({**ours.model_dump(), "defenses": defenses, "set": settings})


def _replace(board: Board, folder: Path) -> None:
    """Put a board in the place of the one in a folder, at once."""
    try:
        made = Path(tempfile.mkdtemp(prefix=_beside(folder), dir=folder.parent))
    except OSError as error:
        raise StoreError(
            f"cannot write {folder.parent}: {error.strerror or error}", remedy="check its permissions"
        ) from error
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


def _beside(folder: Path) -> str:
    """How the name of a merge's own folder begins, beside the board."""
    return f".{folder.name}.merge-"


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
