"""Named files at any fsspec URL: atomic writes, retries through outages, concurrent writers."""

from __future__ import annotations

import contextlib
import functools
import os
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from advbench.errors import MissingExtraError, StoreError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from tenacity import RetryCallState

AT_ONCE = 8  # number of concurrent reads, writes or removals, and so of files in memory
REQUESTS = 16  # the same for small files on a server
PATIENCE = 120.0  # seconds; time limit for retrying a server
BRIEF = 10.0  # the same in interactive commands

FINAL = (FileNotFoundError, FileExistsError, PermissionError, TypeError, NotImplementedError)  # not retried

Given = TypeVar("Given")
T = TypeVar("T")
Model = TypeVar("Model", bound="BaseModel")


class StoreWarning(UserWarning):
    """A file in the store is unusable and treated as absent, or the store is being retried."""


class Storage:
    """Files of bytes below one URL.

    A file in a local folder is written under a temporary name, synced and renamed; object stores show complete objects
    only. A server that fails or does not respond is retried with growing pauses; a local disk is not.

    Args:
        url: folder, or any fsspec URL.
        patience: time limit for retrying a server, in seconds.

    Raises:
        StoreError: the URL is not supported.
        MissingExtraError: its library is not installed.
    """

    def __init__(self, url: str, patience: float = PATIENCE) -> None:
        self.url = url
        self.patience = patience
        if not url.strip():
            raise self.unusable("an empty name")
        if "\0" in url or (url.startswith("~") and os.path.expanduser(url) == url):
            raise self.unusable("a NUL in it" if "\0" in url else "an unknown home folder")
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            if url.startswith("s3://"):
                raise MissingExtraError(f"store {url!r}", "s3fs", "s3") from error
            raise self.unusable(str(error)) from error
        except Exception as error:  # the file system's library may raise anything
            raise self.unusable(f"{type(error).__name__}: {error}") from error
        self._root = root.rstrip("/")
        self.local = isinstance(self._fs, LocalFileSystem)

    @property
    def absolute(self) -> str:
        """The URL, independent of the current folder."""
        return self._root if self.local else self.url

    @property
    def shared(self) -> bool:
        """True if other processes see the same files."""
        return not isinstance(self._fs, MemoryFileSystem)

    def unusable(self, got: str) -> StoreError:
        """Create the error for an unusable store."""
        return StoreError(
            f"store {self.url!r}",
            expected="a writable folder or fsspec URL",
            got=got,
            remedy="choose another with --store",
        )

    def read(self, name: str) -> bytes | None:
        """Read a file, or None if there is none."""
        try:
            raw: bytes = self._persist("read", name, _read if self.local else self._fs.cat_file, FileNotFoundError)
        except FileNotFoundError:
            return None
        return raw

    def write(self, name: str, raw: bytes) -> None:
        """Write a file, replacing an existing one."""
        act = write_atomically if self.local else self._fs.pipe_file
        self._persist("write", name, lambda path: act(path, raw))

    def create(self, name: str, raw: bytes) -> bool:
        """Create a file under a free name; of several callers only one succeeds.

        Args:
            name: the name.
            raw: content unique to this caller, so that a lost response can be distinguished from a refusal.

        Returns:
            True if this call created the file.
        """
        act = _create_locally if self.local else functools.partial(self._fs.pipe_file, mode="create")
        try:
            self._persist("write", name, lambda path: act(path, raw), FileExistsError)
        except FileExistsError:
            return not self.local and self.read(name) == raw
        return True

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self._persist("remove", name, self._fs.rm_file, FileNotFoundError)

    def names(self, folder: str) -> list[str]:
        """Sorted names of all files below a folder, including temporary ones, which begin with a dot."""
        try:
            paths = self._persist("list", folder, self._find, FileNotFoundError)
        except FileNotFoundError:
            return []
        return sorted(path[len(self._root) + 1 :] for path in paths)

    def size(self, name: str) -> int:
        """Size of a file in bytes; 0 if unknown."""
        try:
            return int(self._fs.size(f"{self._root}/{name}") or 0)
        except Exception:
            return 0

    def each(self, act: Callable[[str], T], names: Iterable[str]) -> Iterator[T]:
        """Apply a function to small files, in order; concurrently on a server."""
        return map(act, names) if self.local else in_parallel(act, names, REQUESTS)

    def _find(self, path: str) -> list[str]:
        if self.local:
            return [str(Path(top, name)) for top, _, files in os.walk(path) for name in files]
        self._fs.invalidate_cache()
        found: list[str] = self._fs.find(path)
        return found

    def _persist(self, action: str, name: str, act: Callable[[str], T], passed: type[OSError] | tuple[()] = ()) -> T:
        """Run an action with retries; failures become `StoreError`, except `passed` exceptions and bugs."""
        path = f"{self._root}/{name}"
        try:
            return act(path) if self.local else self._retried(act, path)
        except passed:
            raise
        except Exception as error:
            if self.local and not isinstance(error, OSError):
                raise
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            remedy = "free space or repair the store" if self.local else "check the server"
            raise StoreError(
                f"cannot {action} {path} in the store: {reason}",
                remedy=f"{remedy}, then run the same command again; finished tasks are kept",
            ) from error

    def _retried(self, act: Callable[[str], T], path: str) -> T:
        from tenacity import Retrying, retry_if_exception, stop_before_delay, wait_exponential

        return Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, Exception) and not isinstance(error, FINAL)),
            wait=wait_exponential(0.25, max=5),
            stop=stop_before_delay(self.patience),
            before_sleep=self._warn_once,
            reraise=True,
        )(act, path)

    def _warn_once(self, state: RetryCallState) -> None:
        if state.attempt_number == 1:
            message = f"store {self.url} does not respond; retrying for up to {self.patience:.0f} s"
            warnings.warn(message, StoreWarning, stacklevel=2)


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


def _create_locally(path: str, raw: bytes) -> None:
    """A reader may see the file before its bytes: see `advbench.store.leases`."""
    target = Path(path)
    if not target.parent.is_dir():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise NotADirectoryError(error.errno, "a file where a folder should be", path) from error
    with target.open("xb") as file:
        file.write(raw)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Context for writing a local file atomically: it is renamed once it is synced to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: str | Path, raw: bytes) -> None:
    """Write a local file atomically; it is synced to the disk before it is visible."""
    with replacing(Path(path)) as file:
        file.write(raw)


def write_file(path: Path, raw: bytes) -> None:
    """Write a result file for the user atomically.

    Raises:
        StoreError: the folder cannot be written.
    """
    try:
        write_atomically(path, raw)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}", remedy="choose another folder with --out"
        ) from error


def parsed(model: type[Model], raw: bytes | None) -> Model | None:
    """Parse JSON bytes with a model; None if there are none or they are invalid."""
    try:
        return model.model_validate_json(raw or b"")
    except ValueError:  # base class of pydantic's error
        return None


def in_parallel(act: Callable[[Given], T], items: Iterable[Given], at_once: int = AT_ONCE) -> Iterator[T]:
    """Apply a function to items concurrently; results are in the order of the items."""
    with ThreadPoolExecutor(at_once, "advbench-store") as pool:
        begun: deque[Future[T]] = deque()
        for item in items:
            begun.append(pool.submit(act, item))
            if len(begun) >= at_once:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
