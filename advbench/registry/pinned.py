"""Files in hyperparameters, such as weights: results depend on their SHA-256, never on their path.

A file is given as a path; as `PATH#sha256:DIGEST` (in a run's spec.toml), which does not have to be read; or as
`sha256:DIGEST` (in keys and boards). A process can read a digest only after it has learned its path.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator
from pydantic.fields import FieldInfo

from advbench.errors import InputError
from advbench.registry import files

_PINNED = re.compile(r"((?P<path>.+)#)?sha256:(?P<digest>[0-9a-f]{64})", re.DOTALL)

_paths: dict[str, str] = {}  # paths known to this process, by digest


def pinned(name: str) -> str:
    """Add the digest to the name of a file: `PATH#sha256:DIGEST`.

    Raises:
        InputError: the file does not exist.
    """
    return name if _PINNED.fullmatch(name) else f"{name}#{by_digest(name)}"


def by_digest(name: str) -> str:
    """Return `sha256:DIGEST` of a file and register its path, if given.

    Raises:
        InputError: the file does not exist.
    """
    found = _PINNED.fullmatch(name)
    path = _absolute(found["path"] if found else name)
    digest = found["digest"] if found else _digest(path, name)
    if path and (digest not in _paths or os.path.isfile(path)):
        _paths[digest] = path
    return f"sha256:{digest}"


def without_path(name: str) -> str:
    """Return `sha256:DIGEST` without reading the file.

    Raises:
        InputError: the digest is not given.
    """
    found = _PINNED.fullmatch(name)
    if found is None:
        raise InputError(
            f"file {name!r}",
            expected="its SHA-256 in the form sha256:DIGEST",
            got="a path",
            remedy="the spec.toml of a run's --out folder has both",
        )
    return f"sha256:{found['digest']}"


def bare(value: Any) -> Any:
    """Replace each `PATH#sha256:DIGEST` in settings by `sha256:DIGEST`."""
    return files.renamed(value, lambda text: without_path(text) if _PINNED.fullmatch(text) else text)


def known() -> dict[str, str]:
    """Absolute paths of the files known to this process, by digest."""
    return dict(_paths)


def know(paths: Mapping[str, str]) -> None:
    """Register paths of files by digest."""
    _paths.update(paths)


def digests(value: Any) -> set[str]:
    """Digests of files in settings."""
    return {found["digest"] for found in map(_PINNED.fullmatch, files.strings(value)) if found}


def lacking(value: Any) -> set[str]:
    """Digests in settings of files without a known path."""
    return {digest for digest in digests(value) if not os.path.isfile(_paths.get(digest, ""))}


def search(folder: Path, digests: Collection[str]) -> None:
    """Search a folder, if it exists, for files with the given digests."""
    for path in sorted(folder.glob("*")) if digests else ():
        if path.is_file() and (digest := _digest(str(path.absolute()), str(path))) in digests:
            _paths[digest] = str(path.absolute())


def shown(name: str) -> str:
    """Name of a file for messages: its path, if known."""
    digest = by_digest(name).partition(":")[2]
    return _paths.get(digest, f"with SHA-256 {digest[:12]}")


def content(name: str) -> bytes:
    """Content of a file.

    Raises:
        InputError: the file is missing, cannot be read, or has changed since its digest was computed.
    """
    digest = by_digest(name).partition(":")[2]
    if digest not in _paths:
        raise InputError(
            f"file with SHA-256 {digest[:12]}",
            expected="a path to it",
            got="none",
            remedy="give it as PATH#sha256:DIGEST, or put it into the folder 'weights' of the data root",
        )
    path = _paths[digest]
    files.check_file(path, path)
    raw = Path(path).read_bytes()
    if (got := hashlib.sha256(raw).hexdigest()) != digest:
        raise InputError(
            f"file {path}",
            expected=f"the content with SHA-256 {digest[:12]}, as planned",
            got=f"another, {got[:12]}",
            remedy="omit #sha256 to accept the file as it is; workers must see the same file at that path",
        )
    return raw


def _by_digests(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(by_digest(name) for name in names)


def listed(value: Any) -> Any:
    """Files as a list: names separated by commas, and the sorted matches of patterns such as `member*.pt`.

    Raises:
        InputError: no file matches a pattern.
    """
    if isinstance(value, list | tuple):
        return [name for each in value for name in (listed(each) if isinstance(each, str) else [each])]
    if not isinstance(value, str) or _PINNED.fullmatch(value) or os.path.isfile(_absolute(value)):
        return [value]
    if "," in value:
        return listed([name.strip() for name in value.split(",") if name.strip()])
    if not glob.has_magic(value):
        return [value]
    found = sorted(glob.glob(os.path.expanduser(value)))
    if not found:
        raise InputError(f"files {value}", expected="at least one that matches", got="none")
    return found


# Type of a hyperparameter for files, whose content is in keys: one path, or a list.
Files = Annotated[tuple[str, ...], BeforeValidator(listed), AfterValidator(_by_digests)]


def names_files(field: FieldInfo) -> bool:
    """True if a hyperparameter is of the type `Files`."""
    return any(isinstance(each, AfterValidator) and each.func is _by_digests for each in field.metadata)


def _absolute(path: str | None) -> str:
    return str(Path(os.path.expanduser(path)).absolute()) if path else ""


def _digest(path: str, shown: str) -> str:
    files.check_file(path, shown)
    try:
        state = os.stat(path)
        return _digest_of(path, state.st_mtime_ns, state.st_size, state.st_ino)
    except OSError as error:
        raise InputError(f"file {shown}", expected="a readable file", got=error.strerror or str(error)) from error


@functools.lru_cache(maxsize=1024)
def _digest_of(path: str, *state: int) -> str:
    del state  # forget the file's state, so that a changed file is read again
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
