"""Opens a submission, which may come from anybody: nothing in it is trusted, and nothing is unpickled."""

from __future__ import annotations

import hashlib
import tomllib
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from advbench.boards.board import SPEC
from advbench.boards.submission import MEMBERS, RECORDS
from advbench.errors import InputError
from advbench.grid.identity import DATA, Identity, parse_identity
from advbench.grid.spec import RunSpec, make_spec
from advbench.store.archive import import_
from advbench.store.records import Store

LIMITS = {SPEC: 2**20, DATA: 2**16, RECORDS: 2**33}  # most bytes of each file in it
INFLATION = 200  # most bytes that a byte in the zip may stand for
STEP = 2**20


@dataclass(frozen=True)
class Parcel:
    """What a submission holds.

    Attributes:
        digest: SHA-256 of the file.
        spec: of the run that it is from, which has one defense.
        identity: of its data.
        store: its records, in a store of their own.
    """

    digest: str
    spec: RunSpec
    identity: Identity
    store: Store

    @property
    def label(self) -> str:
        """What the defense is called."""
        return self.spec.defenses[0]


@contextmanager
def opened(path: Path) -> Iterator[Parcel]:
    """A submission, unpacked into a temporary folder.

    Raises:
        InputError: the file is none that `submit` writes, or is damaged.
    """
    with TemporaryDirectory(prefix="advbench-merge-") as folder:
        digest = _unpack(path, Path(folder))
        spec = _spec(path, Path(folder, SPEC).read_bytes())
        try:
            identity = parse_identity(Path(folder, DATA).read_bytes())
        except ValueError as error:
            raise _unfit(path, f"a {DATA} with {error}") from error
        store = Store(str(Path(folder, "store")))
        import_(store, Path(folder, RECORDS))
        yield Parcel(digest, spec, identity, store)


def _unpack(path: Path, folder: Path) -> str:
    """Write the members into a folder; returns the SHA-256 of the file."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if sorted(names) != sorted(MEMBERS):
                raise _unfit(path, f"members {', '.join(map(repr, names[:5])) or 'none'}")
            for member in members:
                _check_member(path, member)
                _extract(path, archive, member, folder / member.filename)
    except (OSError, EOFError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise _unfit(path, reason) from error
    return digest


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
        raise _unfit(path, f"{member.filename} packed in another way")
    if member.file_size > min(LIMITS[member.filename], INFLATION * member.compress_size + 2**12):
        raise _unfit(path, f"{member.filename} with {member.file_size} bytes, more than can be there")


def _extract(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Write a member to a file of our own naming; what it says of its size is not believed."""
    size = 0
    with archive.open(member) as source, target.open("wb") as into:
        while block := source.read(STEP):
            size += len(block)
            if size > member.file_size:
                raise _unfit(path, f"{member.filename} longer than it says")
            into.write(block)
    if size != member.file_size:
        raise _unfit(path, f"{member.filename} shorter than it says")


def _spec(path: Path, raw: bytes) -> RunSpec:
    try:
        values = tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise _unfit(path, f"a {SPEC} that is no TOML ({error})") from error
    spec = make_spec(values)
    if len(spec.defenses) != 1:
        raise _unfit(path, f"a {SPEC} with {len(spec.defenses)} defenses")
    return spec


def _unfit(path: Path, got: str) -> InputError:
    return InputError(f"file {path}", expected="a submission that 'advbench leaderboard submit' wrote", got=got)
