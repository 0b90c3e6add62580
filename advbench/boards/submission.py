"""Submissions: the records of one defense of a run in a file, to be merged into a board."""

from __future__ import annotations

import io
import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from advbench.boards.board import FILES, SPEC, Board, parse_board
from advbench.boards.check import Findings
from advbench.boards.records import LARGEST, Records
from advbench.errors import InputError, unknown_name
from advbench.grid.identity import identify_data, read_identity
from advbench.grid.kept import content, in_board, is_place, read_kept
from advbench.grid.run import keep
from advbench.grid.spec import make_spec, narrowed, parse_toml, published
from advbench.store.records import Store
from advbench.store.storage import write_file

EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date in the zip format


class Submitted(NamedTuple):
    """A packed file, and the number of records in it."""

    path: Path
    records: int


def submit(
    run: Path, label: str, store: Store, path: Path | None = None, *, force: bool = False, data_root: str | None = None
) -> Submitted | Findings:
    """Pack one defense of a run into a file; equal records give equal bytes.

    Args:
        run: `--out` folder of the run.
        label: label of the defense.
        store: store with the records of the run.
        path: file to write; by default LABEL.advbench.zip.
        force: replace an existing file.
        data_root: folder of the data sets.

    Returns:
        The packed file, or the missing records of the defense.

    Raises:
        InputError: the run or defense does not exist, or the file already exists.
        StoreError: the store cannot be read, or the file cannot be written.
    """
    path = path or Path(f"{re.sub(r'[^A-Za-z0-9_.@+-]', '_', label)}.advbench.zip")
    if path.is_dir() or (os.path.lexists(path) and not force):
        raise InputError(f"file {path} already exists", remedy="choose another with --out, or replace it with --force")
    whole = make_spec(parse_toml(run / SPEC))
    if label not in whole.defenses:
        raise unknown_name("defense of the run", label, whole.defenses)
    kept, sources = read_kept(run)
    whole = published(in_board(whole, kept, f"{SPEC} of {run}"), f"{SPEC} of {run}")
    part = narrowed(whole.model_copy(update={"defenses": (label,)}), whole, {*whole.set, *whole.files}, kept)
    identity = read_identity(run)
    identity = identity or identify_data(whole, data_root)
    board = Board(run, part, identity, Records(), kept_files=kept, sources=sources)
    found, findings = {}, Findings()
    for key, record in zip(board.kept, store.read_records(board.kept), strict=True):
        if record is not None:
            found[key] = record
            continue
        failure = store.read_failure(key)
        kind = f"failed: {failure['reason']}" if failure else "not computed yet"
        findings.add(kind, board.plan.tasks[key].label)
    if findings:
        return findings
    contents = (part.to_toml().encode(), identity.to_bytes(), Records(found).to_bytes())
    write_file(path, _zipped({**dict(zip(FILES, contents, strict=True)), **content(keep(board.plan), sources)}))
    return Submitted(path, len(found))


def _zipped(contents: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, raw in contents.items():
            member = zipfile.ZipInfo(name, EPOCH)
            member.create_system, member.external_attr = 3, 0o644 << 16  # the same bytes on every system
            archive.writestr(member, raw)
    return file.getvalue()


def open_submission(path: Path) -> Board:
    """Read an untrusted submission as a board of one defense; nothing is unpickled.

    Raises:
        InputError: it is not a submission, or too large.
    """
    expected = f"a file from 'advbench leaderboard submit', with {', '.join(FILES)}"
    try:
        with zipfile.ZipFile(path) as archive:
            found = sorted(archive.namelist())
            if [name for name in found if not is_place(name)] != sorted(FILES) or len(set(found)) < len(found):
                raise InputError(f"submission {path}", expected=expected, got=", ".join(found)[:200])
            if sum(info.file_size for info in archive.infolist()) > LARGEST:
                raise InputError(f"submission {path}", expected=f"at most {LARGEST:,} bytes", got="more")
            contents = {name: archive.read(name) for name in found}
    except (OSError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"submission {path}", expected=expected, got=str(error) or type(error).__name__) from error
    board = parse_board(path, contents)
    if len(board.spec.defenses) != 1:
        raise InputError(f"submission {path}", expected="one defense", got=len(board.spec.defenses))
    return board
