"""Records and their artifacts as one tar file: packed from any store, checked and added to any other."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import tarfile
import tempfile
import uuid
import warnings
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, cast

from advbench.errors import InputError, StoreError
from advbench.keys import content_key
from advbench.store.heartbeat import Heartbeat
from advbench.store.records import FORMAT, Store, artifact_name, parse_record, record_name
from advbench.store.storage import Storage, StoreWarning
from advbench.store.verify import flaw_of, in_parallel, place, shown

BLOCK = 512  # bytes; a tar consists of whole blocks
RECORD_LIMIT = 2**26  # most bytes of a record in a tar
INFLATION = 100  # most bytes that a byte of a compressed file may stand for; digests in records allow far fewer
CIRCUMSTANCES = ("seconds", "memory", "ran", "versions")  # what a record says of how it came to be


@dataclass(frozen=True)
class Packed:
    """What an export holds.

    Attributes:
        records: how many records.
        artifacts: how many artifacts.
        size: bytes of the file.
        absent: how many of the keys that were asked for have no record.
    """

    records: int
    artifacts: int
    size: int
    absent: int


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes:
        records: how many records were added.
        artifacts: how many artifacts were added, also those of records that were there already.
        known: how many records were there already and say the same.
        conflicts: keys of the records that were there already and say something else; they were kept.
    """

    records: int
    artifacts: int
    known: int
    conflicts: tuple[str, ...]


# Export


def export(
    store: Store,
    path: Path,
    keys: Collection[str] | None = None,
    *,
    models: bool = True,
    examples: bool = False,
    force: bool = False,
) -> Packed:
    """Pack records and their artifacts into one tar file, which is written whole or not at all.

    The same content gives the same bytes. What is damaged or of another schema is left out, with a warning.

    Args:
        store: the store; it is not changed.
        path: the file, whose name ends in `.tar` or `.tar.gz`.
        keys: of the tasks whose results are packed; all by default.
        models: with artifacts of trainings.
        examples: with artifacts of crafts, where they were kept.
        force: replace a file that is there.

    Raises:
        InputError: the file is there already or has another name, or none of the results is in the store.
        StoreError: the store cannot be read, or the file not written.
    """
    if not path.name.endswith((".tar", ".tar.gz")):
        raise InputError(f"file {path}", expected="a name that ends in .tar or .tar.gz")
    if os.path.isdir(path) or (os.path.lexists(path) and not force):
        raise InputError(f"file {path} is there already", remedy="name another, or replace it with --force")
    if keys is None:
        placed = map(place, store.storage.names("records"))
        keys = {key for sort, key in placed if sort == "records"}
    without = [kind for kind, wanted in (("train", models), ("craft", examples)) if not wanted]
    artifacts = absent = 0
    sizes: dict[str, int] = {}
    with _replaced(path) as file, tempfile.TemporaryFile() as records:
        with _tar_into(file, zipped=path.name.endswith(".gz")) as tar:
            for parcel in in_parallel(lambda key: _fetch(store.storage, key, without), sorted(keys)):
                for warning in parcel.warnings:
                    warnings.warn(warning, StoreWarning, stacklevel=2)
                absent += parcel.absent
                if parcel.artifact is not None:
                    _add(tar, artifact_name(parcel.key), len(parcel.artifact), io.BytesIO(parcel.artifact))
                    artifacts += 1
                if parcel.record is not None:
                    sizes[parcel.key] = records.write(parcel.record)
            records.seek(0)
            for key, size in sizes.items():
                _add(tar, record_name(key), size, records)
        if not sizes:
            raise InputError(
                f"store {store.url!r} has none of these results", remedy="name the store that has them with --store"
            )
    return Packed(len(sizes), artifacts, path.stat().st_size, absent)


@dataclass
class _Parcel:
    """What of one task is packed."""

    key: str
    record: bytes | None = None
    artifact: bytes | None = None
    absent: bool = False
    warnings: list[str] = field(default_factory=list)


def _fetch(storage: Storage, key: str, without: Collection[str]) -> _Parcel:
    raw = storage.read(record_name(key))
    if raw is None:
        return _Parcel(key, absent=True)
    record = parse_record(key, raw)
    if record is None or record["schema"] != FORMAT:
        what = "damaged" if record is None else "of another schema"
        return _Parcel(key, warnings=[f"record {key[:12]} in {storage.url} is {what} and left out"])
    parcel = _Parcel(key, raw)
    digest, kind = record.get("artifact"), record.get("kind")
    if digest is None or kind in without:
        return parcel
    artifact = storage.read(artifact_name(key))
    if artifact is None and kind == "craft":
        return parcel
    flaw = "it is not there" if artifact is None else flaw_of(artifact, str(digest))
    if flaw:
        parcel.warnings.append(f"artifact {key[:12]} in {storage.url} is left out: {flaw}")
    else:
        parcel.artifact = artifact
    return parcel


@contextmanager
def _replaced(path: Path) -> Iterator[IO[bytes]]:
    """A file to be written, which takes its name once it is whole and on the disk.

    Raises:
        StoreError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}", remedy="free space, or choose another file"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextmanager
def _tar_into(file: IO[bytes], *, zipped: bool) -> Iterator[tarfile.TarFile]:
    with contextlib.ExitStack() as stack:
        if zipped:
            file = cast("IO[bytes]", stack.enter_context(gzip.GzipFile("", "wb", 6, file, mtime=0)))
        yield stack.enter_context(tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT))


def _add(tar: tarfile.TarFile, name: str, size: int, content: IO[bytes]) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    tar.addfile(member, content)


# Import


def import_(store: Store, path: Path) -> Imported:
    """Add what an export holds to a store.

    The whole file is checked before anything is written: names, digests, keys, and that artifacts can be parsed;
    nothing is unpickled. A record that is there already and says the same is left as it is (it may differ in
    how long the task took, where and with what it ran), and gets its artifact if that is gone; one that says
    something else is kept and reported.

    Args:
        store: the store.
        path: the file.

    Raises:
        InputError: the file is none that `export` writes, or is damaged.
        StoreError: the store cannot be read or written.
    """
    content = _inspect(path)
    store.check_writable()
    with _announced(store):
        return _add_all(store, path, content)


@contextmanager
def _announced(store: Store) -> Iterator[None]:
    """While this lasts nobody takes artifacts whose records are still to come for garbage."""
    heartbeat = Heartbeat(store.storage, "store import", {"upkeep": "import"})
    heartbeat.open()
    try:
        yield
    finally:
        heartbeat.close("done")
        with contextlib.suppress(StoreError):
            store.storage.remove(f"runs/{heartbeat.id}.json")


def _add_all(store: Store, path: Path, content: _Content) -> Imported:
    there = set(store.storage.names("records"))

    def compare(key: str) -> tuple[str, str]:
        own = store.read_record(key) if record_name(key) in there else None
        if own is None:
            return key, "new"
        return key, "known" if said(own) == content.said[key] else "conflict"

    fates = dict(in_parallel(compare, content.said))

    def add(member: _Member) -> bool:
        if hashlib.sha256(member.raw).hexdigest() != content.digests[member.name]:
            raise _unfit(path, "one that changes while it is read")
        if fates[member.key] == "known" and store.read_artifact(member.key) is not None:
            return False
        store.storage.write(member.name, member.raw)
        return True

    def added(sort: str, fitting: Collection[str]) -> int:
        members = (each for each in _members(path) if each.sort == sort and fates[each.key] in fitting)
        return sum(in_parallel(add, members))

    artifacts = added("artifacts", ("new", "known"))  # first, as a record says that all is there
    records = added("records", ("new",))
    ended = list(fates.values())
    conflicts = tuple(sorted(key for key, fate in fates.items() if fate == "conflict"))
    return Imported(records, artifacts, ended.count("known"), conflicts)


class _Member(NamedTuple):
    """A file in a tar."""

    name: str
    sort: Literal["records", "artifacts"]
    key: str
    raw: bytes


@dataclass
class _Content:
    """What a tar holds.

    Attributes:
        digests: SHA-256 of every file, by name.
        said: digest of what each record says, by key.
    """

    digests: dict[str, str] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)


def _inspect(path: Path) -> _Content:
    """Check the whole of a tar.

    Raises:
        InputError: something is wrong with it.
    """
    content = _Content()
    vouched: dict[str, Any] = {}
    for name, sort, key, raw in _members(path):
        if name in content.digests:
            raise _unfit(path, f"two files {name}")
        digest = content.digests[name] = hashlib.sha256(raw).hexdigest()
        if sort == "artifacts":
            flaw = flaw_of(raw, digest)
            if flaw:
                raise _unfit(path, f"a damaged {name}: {flaw}")
            continue
        record = parse_record(key, raw)
        if record is None:
            raise _unfit(path, f"a damaged {name}")
        if record["schema"] != FORMAT:
            raise _unfit(path, f"records of schema {record['schema']!r}, not {FORMAT}, as another version made them")
        vouched[artifact_name(key)] = record.get("artifact")
        content.said[key] = said(record)
    for name, digest in content.digests.items():
        if place(name)[0] == "artifacts" and vouched.get(name) != digest:
            raise _unfit(path, f"{name}, for which no record in it vouches")
    if not content.digests:
        raise _unfit(path, "an empty one")
    return content


def _members(path: Path) -> Iterator[_Member]:
    """The files in a tar, of which only plain headers are understood: no links, devices, folders or extensions.

    Raises:
        InputError: it is none, holds anything else, or ends too early.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            room = path.stat().st_size * (INFLATION if zipped else 1)
            stream = cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if zipped else file
            while (head := _taken(stream, BLOCK)).strip(b"\0"):
                member = tarfile.TarInfo.frombuf(head, "utf-8", "strict")
                sort, key = place(member.name)
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or sort not in ("records", "artifacts"):
                    raise _unfit(path, f"{shown(member.name)}, which does not belong there")
                room -= member.size
                if member.size < 0 or room < 0 or (sort == "records" and member.size > RECORD_LIMIT):
                    raise _unfit(path, f"{member.name} with {member.size} bytes, more than can be there")
                raw = _taken(stream, member.size)
                _taken(stream, -member.size % BLOCK)
                yield _Member(member.name, sort, key, raw)
    except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise _unfit(path, reason) from error


def _taken(stream: IO[bytes], size: int) -> bytes:
    raw = stream.read(size)
    if len(raw) < size:
        raise EOFError("one that ends too early")
    return raw


def _unfit(path: Path, got: str) -> InputError:
    return InputError(f"file {path}", expected="a tar that 'advbench store export' wrote", got=got)


def said(record: Mapping[str, Any]) -> str:
    """Digest of what a record says, without how it came to be."""
    body = {name: value for name, value in record.items() if name not in CIRCUMSTANCES}
    result = body.get("result")
    if isinstance(result, dict) and isinstance(result.get("attack"), dict):
        attack = {name: value for name, value in result["attack"].items() if name not in CIRCUMSTANCES}
        body["result"] = {**result, "attack": attack}
    return content_key(body)
