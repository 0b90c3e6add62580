"""Content-addressed records and artifacts at any fsspec URL: atomic, checksummed, never pickled."""

from __future__ import annotations

import hashlib
import json
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pydantic_core
from pydantic import BaseModel

from advbench.errors import StoreError
from advbench.keys import canonical, content_key
from advbench.store.storage import PATIENCE, Storage, StoreWarning, parsed

FORMAT = 2  # version of the record format
SEAL = b',"sha256":"%s"}'  # end of a record's bytes
SEAL_SIZE = len(SEAL % (b"0" * 64))


class Failure(BaseModel, strict=True, frozen=True, extra="allow"):
    """Reason of a failed task, with further details."""

    reason: str


class Store:
    """Records (JSON) and artifacts (bytes) by key.

    A record is the result of a task; its existence means that the task is done. It contains its own SHA-256 and that of
    the task's artifact, if any. Files are written atomically, so that readers never see partial ones, even after a
    kill. Damaged or unknown files are reported by a `StoreWarning` and count as absent.

    Layout: `records/<2>/<key>.json`, `artifacts/<2>/<key>.safetensors`, `failures/<2>/<key>.json` (reason of a failed
        task), `partial/<key>.safetensors` (the state of an unfinished training), with the first two characters
    of the key as folder; `leases/` and `runs/` are those of `advbench.store.leases` and `advbench.store.heartbeat`.

    Args:
        url: folder, or any fsspec URL.
        patience: time limit for retrying a server that does not respond, in seconds.

    Raises:
        StoreError: the URL is not supported.
    """

    def __init__(self, url: str, patience: float = PATIENCE) -> None:
        self.storage = Storage(url, patience)
        self.url = url

    def check_writable(self) -> None:
        """Write, read and remove a test file; servers are not retried.

        Raises:
            StoreError: that fails.
        """
        name = f"partial/probe-{uuid.uuid4().hex}"
        storage = Storage(self.url, min(self.storage.patience, 5.0))
        try:
            storage.write(name, b"probe")
            intact = storage.read(name) == b"probe"
            storage.remove(name)
        except StoreError as error:
            raise self.storage.unusable(str(error)) from error
        if not intact:
            raise self.storage.unusable("a store that does not return what was written")

    # Records

    def read_record(self, key: str) -> dict[str, Any] | None:
        """Read the record of a task, or None if there is no valid one."""
        raw = self.storage.read(record_name(key))
        return None if raw is None else self.trusted(key, raw)

    def trusted(self, key: str, raw: bytes) -> dict[str, Any] | None:
        """Parse the bytes of a record of this store, or None if they are not valid."""
        record = parse_record(key, raw)
        if record is None or record["schema"] != FORMAT:
            self._distrust("record", key)
            return None
        return record

    def read_records(self, keys: Sequence[str]) -> Iterator[dict[str, Any] | None]:
        """Read the records of several tasks in order, concurrently on a server."""
        return self.storage.each(self.read_record, keys)

    def write_record(self, key: str, record: Mapping[str, Any]) -> None:
        """Store the record of a finished task; write its artifact first."""
        self.storage.write(record_name(key), record_bytes({**record, "key": key, "schema": FORMAT}))

    def is_done(self, key: str, *, with_artifact: bool) -> bool:
        """True if the task's record exists and, on request, the artifact with its digest."""
        if with_artifact:
            return self.read_artifact(key) is not None
        return self.read_record(key) is not None

    def done(self, keys: Iterable[str]) -> set[str]:
        """Keys of the tasks with a valid record; those missing from a listing are not read."""
        listed = set(self.storage.names("records"))
        there = [key for key in keys if record_name(key) in listed]
        found = self.storage.each(lambda key: self.is_done(key, with_artifact=False), there)
        return {key for key, done in zip(there, found, strict=True) if done}

    # Artifacts

    def read_artifact(self, key: str) -> bytes | None:
        """Read the artifact of a task, if it matches the digest in its record, or None."""
        record = self.read_record(key)
        if record is None:
            return None
        raw = self.storage.read(artifact_name(key))
        if raw is None:
            return None
        if hashlib.sha256(raw).hexdigest() != record.get("artifact"):
            self._distrust("artifact", key)
            self.drop_artifact(key)
            return None
        return raw

    def write_artifact(self, key: str, raw: bytes) -> str:
        """Store an artifact; return its SHA-256 for the record's field `artifact`."""
        self.storage.write(artifact_name(key), raw)
        return hashlib.sha256(raw).hexdigest()

    def drop_artifact(self, key: str) -> None:
        """Remove an artifact that is no longer needed; its record stays."""
        self.storage.remove(artifact_name(key))

    # Failures

    def failed_keys(self) -> set[str]:
        """Keys of the tasks that failed and have not succeeded since."""
        return {name.rpartition("/")[2].removesuffix(".json") for name in self.storage.names("failures")}

    def read_failure(self, key: str) -> dict[str, Any] | None:
        """Read why a task failed: `reason`, with further details."""
        failure = parsed(Failure, self.storage.read(_failure_name(key)))
        return None if failure is None else failure.model_dump()

    def write_failure(self, key: str, failure: Mapping[str, Any]) -> None:
        """Store why a task failed, so that it is not retried by default."""
        self.storage.write(_failure_name(key), json.dumps(dict(failure), indent=1, sort_keys=True).encode())

    def drop_failure(self, key: str) -> None:
        """Remove the failure of a task."""
        self.storage.remove(_failure_name(key))

    # State of unfinished trainings

    def read_partial(self, key: str) -> bytes | None:
        """Read the saved state of an unfinished task, or None; verified by the digest at its start."""
        raw = self.storage.read(_partial_name(key))
        if raw is None:
            return None
        body = parse_partial(raw)
        if body is None:
            self._distrust("partial state", key)
        return body

    def write_partial(self, key: str, body: bytes) -> None:
        """Replace the saved state of an unfinished task."""
        self.storage.write(_partial_name(key), hashlib.sha256(body).hexdigest().encode() + body)

    def drop_partial(self, key: str) -> None:
        """Remove the saved state of a task that has finished."""
        self.storage.remove(_partial_name(key))

    def _distrust(self, what: str, key: str) -> None:
        message = f"{what} {key[:12]} in {self.url} is damaged or unknown; it counts as absent"
        warnings.warn(message, StoreWarning, stacklevel=3)


def record_name(key: str) -> str:
    """Name of a task's record in the store."""
    return f"records/{key[:2]}/{key}.json"


def artifact_name(key: str) -> str:
    """Name of a task's artifact in the store."""
    return f"artifacts/{key[:2]}/{key}.safetensors"


def _failure_name(key: str) -> str:
    return f"failures/{key[:2]}/{key}.json"


def _partial_name(key: str) -> str:
    return f"partial/{key}.safetensors"


def record_bytes(body: Mapping[str, Any]) -> bytes:
    """Serialise a record: canonical JSON, with its own SHA-256 as the last entry."""
    raw = canonical(dict(body))
    return raw[:-1] + SEAL % hashlib.sha256(raw).hexdigest().encode()


def parse_record(key: str, raw: bytes) -> dict[str, Any] | None:
    """Parse a record of any schema; None if its digest or key does not match."""
    try:
        sealed = hashlib.sha256(raw[:-SEAL_SIZE] + b"}").hexdigest()
        record: dict[str, Any] = pydantic_core.from_json(raw, allow_inf_nan=False)
        digest = record.pop("sha256")
        # If the bytes are not those of `record_bytes`, the content decides.
        intact = raw.endswith(SEAL % sealed.encode()) or digest == content_key(record)
        intact = intact and record["key"] == key and "schema" in record
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return record if intact else None


def parse_partial(raw: bytes) -> bytes | None:
    """Parse the state of an unfinished training; None if the digest at its start does not match."""
    body = raw[64:]
    return body if hashlib.sha256(body).hexdigest().encode() == raw[:64] else None
