"""Export and import of records and artifacts as a tar file."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from pathlib import Path
from tarfile import AREGTYPE, BLOCKSIZE, REGTYPE, HeaderError, ReadError, TarFile
from typing import IO, Any, NamedTuple, Self, cast

from advbench.errors import InputError, StoreError
from advbench.keys import content_key
from advbench.store.heartbeat import Heartbeat
from advbench.store.records import Store, artifact_name, record_name
from advbench.store.storage import StoreWarning, in_parallel, replacing
from advbench.store.verify import Survey, flaw_of, place

RECORD_LIMIT = 2**26  # bytes; limit on a record in a tar
INFLATION = 100  # maximum compression ratio; digests in records make it far smaller
CIRCUMSTANCES = ("seconds", "memory", "ran", "versions")  # circumstances of a record's computation


class Packed(NamedTuple):
    """Content of an export."""

    records: int  # number of records
    artifacts: int
    size: int  # bytes of the file
    absent: int  # of the keys that were asked for, those without a record


class Imported(NamedTuple):
    """Result of an import."""

    records: int  # records added
    artifacts: int  # artifacts added, also of records that were there already
    known: int  # records that were there already and say the same
    conflicts: tuple[str, ...]  # keys of the records that were there already, say something else, and were kept


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
    """Pack records and their artifacts into one tar file, written atomically.

    Equal content gives equal bytes. Damaged files and those of another schema are left out, with a warning.

    Args:
        store: the store; it is not changed.
        path: file to write, with a name that ends in `.tar`, `.tar.gz` or `.tgz`.
        keys: keys of the tasks to pack; all by default.
        models: include artifacts of trainings.
        examples: include adversarial examples, if stored.
        force: replace an existing file.

    Raises:
        InputError: the file already exists or has another suffix, or none of the results is in the store.
        StoreError: the store cannot be read, or the file cannot be written.
    """
    zipped = path.name.endswith((".tar.gz", ".tgz"))
    if not zipped and not path.name.endswith(".tar"):
        raise InputError(f"file {path}", expected="a name that ends in .tar, .tar.gz or .tgz")
    if os.path.isdir(path) or (os.path.lexists(path) and not force):
        raise InputError(f"file {path} already exists", remedy="choose another, or replace it with --force")
    listed = {key for sort, key in map(place, store.storage.names("records")) if sort == "records"}
    wanted = listed if keys is None else listed.intersection(keys)
    without = [kind for kind, included in (("train", models), ("craft", examples)) if not included]
    records: dict[str, bytes] = {}
    artifacts = 0
    try:
        with (
            replacing(path) as file,
            gzip.GzipFile("", "wb", 6, file, mtime=0) if zipped else nullcontext(file) as stream,
            tarfile.open(fileobj=cast("IO[bytes]", stream), mode="w", format=tarfile.GNU_FORMAT) as tar,
        ):
            for key, record, artifact in in_parallel(lambda key: _fetch(store, key, without), sorted(wanted)):
                if record is not None:
                    records[key] = record
                if artifact is not None:
                    _add(tar, artifact_name(key), artifact)
                    artifacts += 1
            for key, record in records.items():
                _add(tar, record_name(key), record)
            if not records:
                raise InputError(
                    f"store {store.url!r} has none of these results",
                    remedy="choose the store that has them with --store",
                )
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}", remedy="free space, or choose another file"
        ) from error
    return Packed(len(records), artifacts, path.stat().st_size, len(set(keys or ()) - listed))


def _fetch(store: Store, key: str, without: Collection[str]) -> tuple[str, bytes | None, bytes | None]:
    """Key of a task, its record if valid, and its artifact if it is packed."""
    raw = store.storage.read(record_name(key))
    record = None if raw is None else store.trusted(key, raw)
    if record is None:
        return key, None, None
    digest, kind = record.get("artifact"), record.get("kind")
    if digest is None or kind in without:
        return key, raw, None
    artifact = store.storage.read(artifact_name(key))
    if artifact is None and kind == "craft":
        return key, raw, None
    flaw = "it is missing" if artifact is None else flaw_of(artifact, str(digest))
    if flaw:
        warnings.warn(f"artifact {key[:12]} in {store.url} is left out: {flaw}", StoreWarning, stacklevel=2)
    return key, raw, None if flaw else artifact


def _add(tar: tarfile.TarFile, name: str, raw: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(raw)
    tar.addfile(member, io.BytesIO(raw))


# Import


def import_(store: Store, path: Path) -> Imported:
    """Add the content of an export to a store.

    The export is unpacked into a temporary store and verified before anything is written: names, digests, keys, and
    that artifacts can be parsed; nothing is unpickled. An existing record with the same content is kept (time, host and
    versions may differ) and gets its artifact if that is missing; one with different content is kept and reported.

    Args:
        store: the store.
        path: file to read.

    Raises:
        InputError: the file was not written by `export`, or is damaged.
        StoreError: the store or the folder for temporary files cannot be read or written.
    """
    with tempfile.TemporaryDirectory(prefix="advbench-import-") as folder:
        unpacked = Store(folder)
        keys = _unpack(path, unpacked)
        store.check_writable()
        # Protects artifacts without records from garbage collection during the import.
        heartbeat = Heartbeat(store.storage, "store import", {"upkeep": "import"})
        try:
            with heartbeat:
                listed = set(store.storage.names("records"))
                added = list(in_parallel(lambda key: _add_to(store, unpacked, key, record_name(key) in listed), keys))
        finally:
            with contextlib.suppress(StoreError):
                store.storage.remove(f"runs/{heartbeat.id}.json")
    fates = [fate for fate, _ in added]
    conflicts = tuple(key for key, fate in zip(keys, fates, strict=True) if fate == "conflict")
    return Imported(fates.count("new"), sum(artifact for _, artifact in added), fates.count("known"), conflicts)


def _unpack(path: Path, into: Store) -> list[str]:
    """Unpack an export into an empty store and verify it; return the sorted keys of its records.

    Raises:
        InputError: the export is invalid.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        room = path.stat().st_size * (INFLATION if zipped else 1)
        with tarfile.open(path, "r:gz" if zipped else "r:", tarinfo=_Header) as tar:
            for member in tar:
                room -= member.size
                if room < 0:
                    raise ReadError(f"{member.name} with {member.size} bytes, too large")
                content = tar.extractfile(member)
                if content is None or not into.storage.create(member.name, content.read()):
                    raise ReadError(f"two files {member.name}")
    except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError) as error:
        raise _unfit(path, getattr(error, "strerror", None) or str(error) or type(error).__name__) from error
    found = list(Survey(into.storage))
    for each in found:
        if each.problem:
            raise _unfit(path, str(each))
    if not found:
        raise _unfit(path, "an empty file")
    return [each.key for each in found if each.sort == "records"]


def _unfit(path: Path, got: str) -> InputError:
    return InputError(f"file {path}", expected="a tar file from 'advbench store export'", got=got)


class _Header(tarfile.TarInfo):
    """Tar header of a record or an artifact; links, devices, folders and extensions are refused."""

    @classmethod
    def fromtarfile(cls, tarfile: TarFile) -> Self:
        """Read the next header."""
        assert tarfile.fileobj is not None, "the file is open"
        block = tarfile.fileobj.read(BLOCKSIZE)
        try:
            member = cls.frombuf(block, "utf-8", "strict")
        except HeaderError as error:
            if block == bytes(BLOCKSIZE):
                raise  # end of file; tarfile would treat a later bad header as the end
            raise ReadError(str(error)) from error
        sort, _ = place(member.name)
        if member.type not in (REGTYPE, AREGTYPE) or sort not in ("records", "artifacts"):
            raise ReadError(f"{member.name}, which does not belong there")
        if member.size < 0 or (sort == "records" and member.size > RECORD_LIMIT):
            raise ReadError(f"{member.name} with {member.size} bytes, too large")
        member.offset_data = tarfile.fileobj.tell()
        tarfile.offset = member.offset_data + member.size + -member.size % BLOCKSIZE
        return member


def _add_to(store: Store, unpacked: Store, key: str, listed: bool) -> tuple[str, bool]:
    """Add the artifact of a task, then its record, which implies that both exist; return the outcome of each."""
    own = store.read_record(key) if listed else None
    if own is not None and said(own) != said(unpacked.read_record(key) or {}):
        return "conflict", False
    artifact = unpacked.read_artifact(key)
    if own is not None and artifact is not None and store.read_artifact(key) is not None:
        artifact = None
    if artifact is not None:
        store.storage.write(artifact_name(key), artifact)
    if own is None:
        store.storage.write(record_name(key), unpacked.storage.read(record_name(key)) or b"")
    return "new" if own is None else "known", artifact is not None


def said(record: Mapping[str, Any]) -> str:
    """Digest of the content of a record, without its circumstances."""
    body = {name: value for name, value in record.items() if name not in CIRCUMSTANCES}
    result = body.get("result")
    if isinstance(result, dict) and isinstance(result.get("attack"), dict):
        attack = {name: value for name, value in result["attack"].items() if name not in CIRCUMSTANCES}
        body["result"] = {**result, "attack": attack}
    return content_key(body)
