"""Bytes under names at any fsspec URL: whole or not at all, through outages, by several writers at once."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from advbench.errors import MissingExtraError, StoreError

AT_ONCE = 16  # requests to a server
PATIENCE = 120.0  # seconds for which a server that does not answer is tried again
BRIEF = 10.0  # the same, where somebody waits for an answer

FINAL = (FileNotFoundError, FileExistsError, PermissionError, TypeError, NotImplementedError)  # time mends none

T = TypeVar("T")


class StoreWarning(UserWarning):
    """Something in the store cannot be used and is treated as absent, or is waited for."""


class Storage:
    """Files of bytes below one URL.

    A file of a local folder is written under a temporary name, synced and renamed; object stores show an
    object only when it is whole. A server that fails or does not answer is tried again, with growing pauses;
    a local disk is not.

    Args:
        url: a folder, or any URL that fsspec understands.
        patience: seconds for which a server is tried again before that is an error.

    Raises:
        StoreError: no file system answers to the URL.
        MissingExtraError: its library is not installed.
    """

    def __init__(self, url: str, patience: float = PATIENCE) -> None:
        self.url = url
        self.patience = patience
        if not url.strip():
            raise self.unusable("an empty name")
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            if url.startswith("s3://"):
                raise MissingExtraError(f"store {url!r}", "s3fs", "s3") from error
            raise self.unusable(str(error)) from error
        except Exception as error:  # whatever the file system's library raises
            raise self.unusable(f"{type(error).__name__}: {error}") from error
        self._root = root.rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)

    @property
    def absolute(self) -> str:
        """The URL as it is understood from any folder."""
        return self._root if self._local else self.url

    @property
    def shared(self) -> bool:
        """Whether other processes see the same files."""
        return not isinstance(self._fs, MemoryFileSystem)

    def unusable(self, got: str) -> StoreError:
        """The error of a store that cannot be used at all."""
        return StoreError(
            f"store {self.url!r}",
            expected="a folder or fsspec URL that can be written",
            got=got,
            remedy="choose another with --store",
        )

    def read(self, name: str) -> bytes | None:
        """The bytes under a name, or None where there are none."""
        try:
            raw: bytes = self._persist("read", name, _read if self._local else self._fs.cat_file, FileNotFoundError)
        except FileNotFoundError:
            return None
        return raw

    def write(self, name: str, raw: bytes) -> None:
        """Put bytes under a name, in place of others."""
        if self._local:
            self._persist("write", name, lambda path: write_atomically(Path(path), raw))
        else:
            self._persist("write", name, lambda path: self._fs.pipe_file(path, raw))

    def create(self, name: str, raw: bytes) -> bool:
        """Put bytes under a name that must be free; of several callers one succeeds.

        Args:
            name: the name.
            raw: bytes that no other caller writes, so that an answer lost on its way can be told from a refusal.

        Returns:
            Whether they are there now, by this call.
        """
        act = _create_locally if self._local else self._create_remotely
        try:
            self._persist("write", name, lambda path: act(path, raw), FileExistsError)
        except FileExistsError:
            return not self._local and self.read(name) == raw
        return True

    def _create_remotely(self, path: str, raw: bytes) -> None:
        self._fs.pipe_file(path, raw, mode="create")

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._persist("remove", name, self._fs.rm_file, FileNotFoundError)

    def names(self, folder: str) -> list[str]:
        """Names of all files below a folder, sorted; those of unfinished writes, which begin with a dot, too."""
        try:
            paths = self._persist("list", folder, self._find, FileNotFoundError)
        except FileNotFoundError:
            return []
        return sorted(path[len(self._root) + 1 :] for path in paths)

    def each(self, act: Callable[[str], T], items: Sequence[str]) -> Iterator[T]:
        """Do something for many items, in their order; for a server's files several at a time."""
        if self._local or len(items) < 2:
            yield from map(act, items)
            return
        with ThreadPoolExecutor(AT_ONCE) as pool:
            yield from pool.map(act, items)

    def _find(self, path: str) -> list[str]:
        if self._local:
            return [str(Path(top, name)) for top, _, files in os.walk(path) for name in files]
        self._fs.invalidate_cache()
        found: list[str] = self._fs.find(path)
        return found

    def _persist(self, action: str, name: str, act: Callable[[str], T], passed: type[OSError] | tuple[()] = ()) -> T:
        """Do it; of a server's failures none but the last counts, and what is `passed` is an answer."""
        path = f"{self._root}/{name}"
        told = False
        for pause in (None,) if self._local else _pauses(self.patience):
            try:
                return act(path)
            except passed:
                raise
            except Exception as error:
                expected = not self._local or isinstance(error, OSError)
                if pause is None or isinstance(error, FINAL):
                    if not expected:
                        raise
                    raise self._failure(action, path, error) from error
                if not told:
                    message = f"store {self.url} does not answer; it is tried again for up to {self.patience:.0f} s"
                    warnings.warn(message, StoreWarning, stacklevel=4)
                told = True
                time.sleep(pause)
        raise RuntimeError("pauses end with None")

    def _failure(self, action: str, path: str, error: Exception) -> StoreError:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        remedy = "free space or mend the store" if self._local else "see to the server"
        return StoreError(
            f"cannot {action} {path} in the store: {reason}",
            remedy=f"{remedy}, then run the same command again: nothing finished is lost",
        )


def _pauses(patience: float) -> Iterator[float | None]:
    """Seconds to wait before each new try, and None after the last."""
    end = time.monotonic() + patience
    pause = 0.25
    while time.monotonic() + pause < end:
        yield pause
        pause = min(2 * pause, 5.0)
    yield None


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


def _create_locally(path: str, raw: bytes) -> None:
    """A link is made or refused in one step, and shows the whole file at once."""
    target = Path(path)
    if not target.parent.is_dir():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise NotADirectoryError(error.errno, "a file where a folder should be", path) from error
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(raw)
        os.link(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, raw: bytes) -> None:
    """Write a local file whole or not at all; synced to the disk before it is seen."""
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
        write_atomically(path, raw)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}", remedy="choose another folder with --out"
        ) from error
