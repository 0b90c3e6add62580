"""Files that hyperparameters name, as weights: results depend on the SHA-256 of their content, never on their path.

A file is written as a path; as `PATH#sha256:DIGEST`, as a run's spec.toml has it, which need not be read to be known;
or as `sha256:DIGEST`, as keys and boards have it. What a process can read by its digest it was told the path of.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator
from pydantic.fields import FieldInfo

from advbench.errors import InputError
from advbench.registry import files

_PINNED = re.compile(r"((?P<path>.+)#)?sha256:(?P<digest>[0-9a-f]{64})", re.DOTALL)

_paths: dict[str, str] = {}  # of this process, by digest


def pinned(name: str) -> str:
    """A file's name with its digest, `PATH#sha256:DIGEST`; one that has a digest stays.

    Raises:
        InputError: there is no such file.
    """
    return name if _PINNED.fullmatch(name) else f"{name}#{by_digest(name)}"


def by_digest(name: str) -> str:
    """`sha256:DIGEST` of a file; this process can read it from now on, if it has the path.

    Raises:
        InputError: there is no such file.
    """
    found = _PINNED.fullmatch(name)
    path = _absolute(found["path"] if found else name)
    digest = found["digest"] if found else _digest(path, name)
    if path and (digest not in _paths or os.path.isfile(path)):
        _paths[digest] = path
    return f"sha256:{digest}"


def without_path(name: str) -> str:
    """`sha256:DIGEST`, as those may know it who are to read no file.

    Raises:
        InputError: the digest is not stated.
    """
    found = _PINNED.fullmatch(name)
    if found is None:
        raise InputError(
            f"file {name!r}",
            expected="its SHA-256, as sha256:DIGEST",
            got="a path",
            remedy="the spec.toml of a run's --out folder has both",
        )
    return f"sha256:{found['digest']}"


def bare(value: Any) -> Any:
    """Settings in which each `PATH#sha256:DIGEST` is `sha256:DIGEST`, whatever it is a setting of."""
    return files.renamed(value, lambda text: without_path(text) if _PINNED.fullmatch(text) else text)


def known() -> dict[str, str]:
    """Absolute paths of the files that this process can read, by digest."""
    return dict(_paths)


def know(paths: Mapping[str, str]) -> None:
    """Let this process read files, by digest."""
    _paths.update(paths)


def digests(value: Any) -> set[str]:
    """Digests of the files that settings name by them."""
    return {found["digest"] for found in map(_PINNED.fullmatch, files.strings(value)) if found}


def lacking(value: Any) -> set[str]:
    """Of the digests in settings, those of files that this process knows no path of."""
    return {digest for digest in digests(value) if not os.path.isfile(_paths.get(digest, ""))}


def search(folder: Path, digests: Collection[str]) -> None:
    """Look for files of those digests among the files of a folder, if there is one."""
    for path in sorted(folder.glob("*")) if digests else ():
        if path.is_file() and (digest := _digest(str(path.absolute()), str(path))) in digests:
            _paths[digest] = str(path.absolute())


def shown(name: str) -> str:
    """A file for messages: its path where that is known."""
    digest = by_digest(name).partition(":")[2]
    return _paths.get(digest, f"with SHA-256 {digest[:12]}")


def content(name: str) -> bytes:
    """A file's content.

    Raises:
        InputError: it is not here, cannot be read, or has changed since its digest was taken.
    """
    digest = by_digest(name).partition(":")[2]
    if digest not in _paths:
        raise InputError(
            f"file with SHA-256 {digest[:12]}",
            expected="a path to it",
            got="none",
            remedy="name it, as PATH#sha256:DIGEST, or put it into the folder 'weights' of the data root",
        )
    path = _paths[digest]
    files.check_file(path, path)
    raw = Path(path).read_bytes()
    if (got := hashlib.sha256(raw).hexdigest()) != digest:
        raise InputError(
            f"file {path}",
            expected=f"the content that was planned with, of SHA-256 {digest[:12]}",
            got=f"another, of {got[:12]}",
            remedy="name the file without #sha256 to take it as it is; workers must see the same file at that path",
        )
    return raw


def _by_digests(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(by_digest(name) for name in names)


# The type of a hyperparameter that names files, by one path or a list.
Files = Annotated[tuple[str, ...], AfterValidator(_by_digests)]


def names_files(field: FieldInfo) -> bool:
    """Whether a hyperparameter is of the type `Files`."""
    return any(isinstance(each, AfterValidator) and each.func is _by_digests for each in field.metadata)


def _absolute(path: str | None) -> str:
    return str(Path(os.path.expanduser(path)).absolute()) if path else ""


def _digest(path: str, shown: str) -> str:
    files.check_file(path, shown)
    try:
        state = os.stat(path)
        return _digest_of(path, state.st_mtime_ns, state.st_size, state.st_ino)
    except OSError as error:
        raise InputError(f"file {shown}", expected="one that can be read", got=error.strerror or str(error)) from error


@functools.lru_cache(maxsize=1024)
def _digest_of(path: str, *state: int) -> str:
    del state  # of the file, so that a changed one is read again
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
