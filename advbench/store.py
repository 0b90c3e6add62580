"""Content-addressed records and artifacts at any fsspec URL: atomic, checksummed, never pickled."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from advbench.errors import StoreError
from advbench.keys import SCHEMA, content_key


class StoreWarning(UserWarning):
    """Something in the store cannot be used and is treated as absent."""


class Store:
    """Records (JSON) and artifacts (bytes) by key.

    A record is a task's result; that it exists means that the task is done. It names the SHA-256 of the
    task's artifact, if there is one, and carries its own. Everything is written under a temporary name,
    synced and renamed, so a reader sees a whole file or none, and a kill leaves nothing half done. What is
    damaged or foreign all the same is reported by a `StoreWarning` and counts as absent.

    Layout: `records/<2>/<key>.json`, `artifacts/<2>/<key>.safetensors`, `partial/<key>.safetensors` (the
    state of an unfinished training), with the first two characters of the key as folder.

    Args:
        url: a folder, or any URL that fsspec understands.

    Raises:
        StoreError: no file system answers to the URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        if not url.strip():
            raise self._unusable("an empty name")
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except (OSError, ValueError, ImportError) as error:
            raise self._unusable(f"{type(error).__name__}: {error}") from error
        self._root = root.rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)

    def check_writable(self) -> None:
        """Write, read and remove a probe.

        Raises:
            StoreError: that cannot be done.
        """
        probe = f"probe-{uuid.uuid4().hex}"
        try:
            self.write_partial(probe, b"probe")
            sound = self.read_partial(probe) == b"probe"
            self.drop_partial(probe)
        except StoreError as error:
            raise self._unusable(str(error)) from error
        if not sound:
            raise self._unusable("a store that does not give back what was written")

    def _unusable(self, got: str) -> StoreError:
        return StoreError(
            f"store {self.url!r}",
            expected="a folder or fsspec URL that can be written",
            got=got,
            remedy="choose another with --store",
        )

    # Records

    def read_record(self, key: str) -> dict[str, Any] | None:
        """The record of a task, or None where there is none that can be trusted."""
        raw = self._read(self._record_path(key))
        if raw is None:
            return None
        try:
            record: dict[str, Any] = json.loads(raw)
            digest = record.pop("sha256")
            sound = record["key"] == key and record["schema"] == SCHEMA and digest == content_key(record)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            sound = False
        if not sound:
            self._distrust("record", key)
            return None
        return record

    def write_record(self, key: str, record: Mapping[str, Any]) -> None:
        """Store the record of a finished task; write its artifact first."""
        body = {**record, "key": key, "schema": SCHEMA}
        body["sha256"] = content_key(body)
        self._write(self._record_path(key), json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False).encode())

    def is_done(self, key: str, *, with_artifact: bool) -> bool:
        """Whether the task's record exists and, if that is asked for, the artifact that it vouches for."""
        if with_artifact:
            return self.read_artifact(key) is not None
        return self.read_record(key) is not None

    # Artifacts

    def read_artifact(self, key: str) -> bytes | None:
        """The artifact that the record of `key` vouches for, or None."""
        record = self.read_record(key)
        if record is None:
            return None
        raw = self._read(self._artifact_path(key))
        if raw is None:
            return None
        if hashlib.sha256(raw).hexdigest() != record.get("artifact"):
            self._distrust("artifact", key)
            self.drop_artifact(key)
            return None
        return raw

    def write_artifact(self, key: str, raw: bytes) -> str:
        """Store an artifact; returns its SHA-256, which belongs into the record under `artifact`."""
        self._write(self._artifact_path(key), raw)
        return hashlib.sha256(raw).hexdigest()

    def drop_artifact(self, key: str) -> None:
        """Remove an artifact that nothing needs any more; its record stays."""
        self._remove(self._artifact_path(key))

    # State of unfinished trainings

    def read_partial(self, key: str) -> bytes | None:
        """The saved state of an unfinished task, or None; checked by a digest at its head."""
        raw = self._read(self._partial_path(key))
        if raw is None:
            return None
        digest, body = raw[:64], raw[64:]
        if hashlib.sha256(body).hexdigest().encode() != digest:
            self._distrust("partial state", key)
            return None
        return body

    def write_partial(self, key: str, body: bytes) -> None:
        """Replace the saved state of an unfinished task."""
        self._write(self._partial_path(key), hashlib.sha256(body).hexdigest().encode() + body)

    def drop_partial(self, key: str) -> None:
        """Remove the saved state of a task that has finished."""
        self._remove(self._partial_path(key))

    # Files

    def _record_path(self, key: str) -> str:
        return f"{self._root}/records/{key[:2]}/{key}.json"

    def _artifact_path(self, key: str) -> str:
        return f"{self._root}/artifacts/{key[:2]}/{key}.safetensors"

    def _partial_path(self, key: str) -> str:
        return f"{self._root}/partial/{key}.safetensors"

    def _distrust(self, what: str, key: str) -> None:
        message = f"{what} {key[:12]} in {self.url} is damaged or foreign; it counts as absent"
        warnings.warn(message, StoreWarning, stacklevel=3)

    def _read(self, path: str) -> bytes | None:
        try:
            raw: bytes = self._fs.cat_file(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failure("read", path, error) from error
        return raw

    def _remove(self, path: str) -> None:
        try:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(path)
        except OSError as error:
            raise self._failure("remove", path, error) from error

    def _write(self, path: str, raw: bytes) -> None:
        try:
            if self._local:
                _write_atomically(Path(path), raw)
            else:
                self._fs.pipe_file(path, raw)  # object stores show an object only when it is whole
        except OSError as error:
            raise self._failure("write", path, error) from error

    def _failure(self, action: str, path: str, error: OSError) -> StoreError:
        return StoreError(
            f"cannot {action} {path} in the store: {error.strerror or error}",
            remedy="free space or mend the store, then run the same command again: nothing finished is lost",
        )


def _write_atomically(path: Path, raw: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, raw: bytes) -> None:
    """Write a result file for the user, whole or not at all.

    Raises:
        StoreError: the folder cannot be written.
    """
    try:
        _write_atomically(path, raw)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}", remedy="choose another folder with --out"
        ) from error
