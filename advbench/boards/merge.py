"""Merges a submission into a board atomically, with checks before and after, under a lock."""

from __future__ import annotations

import ctypes
import glob
import os
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from advbench.boards.board import Board, described, locked, sources, write
from advbench.boards.check import Findings, check, check_records
from advbench.boards.records import Records
from advbench.boards.submission import open_submission
from advbench.errors import InputError, StoreError
from advbench.grid.plan import Plan
from advbench.grid.spec import Choice, make_spec, narrowed
from advbench.report.evaluations import is_own
from advbench.store.archive import said

SETTINGS = (
    "dataset architecture norm eps seeds draws limit batch_size precision threads device sweep budget converge ood "
    "ood_scale ood_signed history"
).split()


CHECKOUT = re.compile(r"\+[0-9a-f]{12}\b")  # digest of sources in the version of an editable install


class Merged(NamedTuple):
    """The outcome of a merge.

    Attributes:
        label: the defense that was added.
        records: number of records added.
        own: its cells without a record that the submission should have, by attack and radius.
        transfers: number of cells without a record between the defense and others, which a submission cannot have.
        others: number of cells without a record of other defenses.
        ranked: True if it has a rank.
    """

    label: str
    records: int
    own: tuple[str, ...]
    transfers: int
    others: int
    ranked: bool


def merge(folder: Path, file: Path, *, replacing: bool = False) -> Merged | Findings:
    """Add a submission to a board, or nothing if a check fails.

    Args:
        folder: folder of the board.
        file: path of the submission.
        replacing: replace a defense of the same label.

    Returns:
        The outcome, or the problems of the board or the submission.

    Raises:
        InputError: the board or the submission cannot be read, they do not match, or the label is taken.
        StoreError: the folder cannot be written.
    """
    folder = Path(os.path.abspath(folder))  # unlike `resolve`, keeps links, which are refused
    if Path.cwd().is_relative_to(folder.resolve()):
        expected = "a folder outside the board, which is replaced"
        raise InputError("working folder", expected=expected, remedy=f"cd {folder.parent}")
    with locked(folder):
        for left in folder.parent.glob(f"{glob.escape(_prefix(folder))}*"):
            shutil.rmtree(left, ignore_errors=True)  # left over from a killed merge
        board, findings = check(folder)
        theirs = open_submission(file)
        check_records(theirs, findings)
        if findings:
            return findings
        _check_fit(board, theirs)
        (label,) = theirs.spec.defenses
        if label in board.spec.defenses and not replacing:
            remedy = "replace it with --replace, or give the submission another @label"
            raise InputError(f"defense {label!r} is already on the board", remedy=remedy)
        joined = _joined(board, theirs)
        own = _own_keys(board.plan, label)
        _check_others_stay(board, joined, own, file)
        whole = replace(joined, records=_joined_records(joined, theirs, own, file))
        _install(whole, folder)
        return _outcome(whole, label, sum(key in whole.records for key in theirs.records))


def _outcome(board: Board, label: str, records: int) -> Merged:
    """What a merge added, and what is missing."""
    gaps = [cell for cell in board.plan.cells if cell.key not in board.records]
    transfers = [cell for cell in gaps if not is_own(cell) and label in (cell.source.label, cell.defense.label)]
    own = [_place(cell.attack, cell.eps) for cell in gaps if is_own(cell) and cell.defense.label == label]
    rest = [(each.defense.label, each.key) for each in board.plan.known]
    rest += [(each.defense.label, each.key) for each in board.plan.ood]
    own += [board.plan.tasks[key].label for owner, key in rest if owner == label and key not in board.records]
    ranked = any(each.defense == label and each.rank is not None for each in board.report.standings)
    others = board.missing - len(transfers) - len(own)
    return Merged(label, records, tuple(own), len(transfers), others, ranked)


def _place(attack: Choice | None, eps: float) -> str:
    return f"{attack.label} {eps:g}" if attack else "clean"


def _own_keys(plan: Plan, label: str) -> set[str]:
    """Keys of the tasks of one defense that are not shared with other labels."""
    uses = [({name}, key) for (name, _), key in plan.trained.items()]
    uses += [({cell.defense.label, cell.source.label}, cell.key) for cell in plan.cells]
    uses += [({cell.defense.label}, cell.key) for cell in plan.known]
    uses += [({each.defense.label}, each.key) for each in plan.ood]
    return {key for labels, key in uses if label in labels} - {key for labels, key in uses if label not in labels}


def _check_others_stay(board: Board, joined: Board, own: set[str], file: Path) -> None:
    """Refuse a submission that would change the keys, and so lose the records, of the board's other defenses."""
    lost = set(board.kept) - set(joined.kept) - own
    names = sorted({cell.defense.label for cell in board.plan.cells if cell.key in lost})
    if lost:
        raise InputError(
            f"submission {file}",
            expected="a submission that leaves other defenses of the board unchanged",
            got=f"other settings, weights or sources of {', '.join(names)}",
            remedy="give the defense, and the source of its initial weights, a @label of its own",
        )


def _joined_records(joined: Board, theirs: Board, own: set[str], file: Path) -> Records:
    """Records of the board with those of the submission that are new or replace the defense's own.

    Raises:
        InputError: the submission has records of other settings, or different results under a key of the board.
    """
    kept, ours = set(joined.kept), joined.records
    extra = {cell.key for cell in theirs.plan.evaluated if cell.attack and cell.attack.label not in joined.spec.attacks}
    others = [key for key in theirs.records if key not in kept and key not in extra]
    if others:
        raise InputError(f"submission {file}", expected="records of the board's settings", got=f"{len(others)} others")
    known = [key for key in theirs.records if key in ours and key not in own]
    if any(said(ours[key]) != said(theirs.records[key]) for key in known):
        raise InputError(
            f"submission {file}",
            expected="the board's results for the same weights and images",
            got="different results under the same keys",
            remedy="submit a defense with other hyperparameters than those on the board",
        )
    return Records({**theirs.records, **ours, **theirs.records.only(own)}).only(joined.kept)


def _check_fit(board: Board, theirs: Board) -> None:
    """Refuse a submission whose settings, data or sources differ from the board's."""
    for name in SETTINGS:
        ours, other = getattr(board.spec, name), getattr(theirs.spec, name)
        if ours != other and not (name == "dataset" and theirs.identity.sha256 == board.identity.sha256):
            raise InputError(f"setting {name!r} of the submission", expected=f"the board's {ours!r}", got=repr(other))
    for name in (board.spec.architecture, *board.spec.attacks):
        in_files = [each.spec.files.get(name) for each in (board, theirs)]
        if in_files[0] != in_files[1]:
            raise InputError(f"file of {name!r} in the submission", expected="the board's, by SHA-256", got="another")
    ours, others = board.kept_files.choices, theirs.kept_files.choices
    for name in board.spec.attacks:
        if name in ours and name in others and ours[name].component != others[name].component:
            expected, got = (described(each[name].component) for each in (ours, others))
            raise InputError(f"attack {name!r} of the submission", expected=f"the board's {expected}", got=got)
    if theirs.identity != board.identity:
        raise InputError("data of the submission", expected="the board's, by SHA-256", got="others")
    made_by = [sources(each.records.checkout) for each in (board, theirs)]
    if board.records and made_by[0] != made_by[1]:
        raise InputError(
            "sources that computed the submission",
            expected=f"those of the board, {made_by[0]}",
            got=made_by[1],
            remedy="use the same kind of installation (pip install without -e installs a release)",
        )
    for label, parts in theirs.needs.items():
        for part in parts:
            if board.records.checkout is None and any(map(CHECKOUT.search, part.versions.values())):
                raise InputError(
                    f"plugin {label!r} of the submission",
                    expected=f"a release of {part.distribution}, which others can install",
                    got=f"a checkout, {described(part)}",
                    remedy="install it without -e and run again, or submit the defense as a file",
                )
    missing = [name for name in board.spec.attacks if name not in theirs.spec.attacks]
    if missing:
        raise InputError("attacks of the submission", expected="all of the board's", got=f"none of {missing[0]!r}")


def _joined(board: Board, submission: Board) -> Board:
    """The board with the submission's defense, and its settings and files."""
    ours, theirs = board.spec, submission.spec
    (label,) = theirs.defenses
    named = theirs.model_copy(update={"attacks": ours.attacks})
    part = narrowed(named, theirs, {*theirs.set, *theirs.files}, submission.kept_files)
    settings = {**ours.set, **{name: params for name, params in part.set.items() if name not in ours.attacks}}
    table = {**ours.files, **{name: file for name, file in part.files.items() if name not in ours.attacks}}
    if label in settings and label not in theirs.set:
        del settings[label]
    if label in table and label not in theirs.files:
        del table[label]
    before, added = board.kept_files, submission.kept_files
    new = {name: each for name, each in added.choices.items() if each.kind == "defense"}
    old = {name: each for name, each in before.choices.items() if name != label}
    sizes = {**added.parameters, **before.parameters}
    kept = before.model_copy(update={"choices": {**old, **new}, "parameters": sizes})
    defenses = ours.defenses if label in ours.defenses else (*ours.defenses, label)
    spec = make_spec({**ours.model_dump(), "defenses": defenses, "set": settings, "files": table})
    return replace(board, spec=spec, kept_files=kept, sources={**submission.sources, **board.sources})


def _install(board: Board, folder: Path) -> None:
    """Replace the board in a folder by another one, atomically."""
    made = None
    try:
        made = Path(tempfile.mkdtemp(prefix=_prefix(folder), dir=folder.parent))
        shutil.copytree(folder, made, dirs_exist_ok=True)
        write(board, made)
        _, findings = check(made)
        assert not findings, f"a merged board fails its check: {list(findings.lines())}"
        _exchange(made, folder)
    except OSError as error:
        place = error.filename or folder
        raise StoreError(f"cannot write {place}: {error.strerror or error}", remedy="check its permissions") from error
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


def _prefix(folder: Path) -> str:
    """Prefix of the temporary folder of a merge, next to the board."""
    return f".{folder.name}.merge-"


def _exchange(one: Path, other: Path) -> None:
    """Swap two folders, atomically if the system supports it."""
    libc = ctypes.CDLL(None, use_errno=True)
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE
    if hasattr(libc, "renameat2") and not libc.renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange):
        return
    aside = one.with_name(f"{one.name}-before")
    other.rename(aside)
    one.rename(other)
    aside.rename(one)
