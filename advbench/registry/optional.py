"""Optional libraries of extras: checks that one is installed and intact, and calls into it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

from advbench.errors import MissingExtraError, PluginError, out_of_memory

FAILURES = (ArithmeticError, AssertionError, IndexError, RuntimeError, TypeError, ValueError)


def require(distribution: str, needed_by: str, extra: str) -> importlib.metadata.Distribution:
    """Return an installed distribution of an extra.

    Args:
        distribution: name of the distribution.
        needed_by: feature that needs it, for the error.
        extra: extra of advbench that installs it.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtraError(needed_by, distribution, extra) from error


@contextlib.contextmanager
def calling(what: str) -> Iterator[None]:
    """Context for calls into another library; its failures become one-line errors, whose cause has the traceback.

    Args:
        what: description of the call, for the error.

    Raises:
        PluginError: the library failed. Out-of-memory errors are raised unchanged.
    """
    try:
        yield
    except FAILURES as error:
        if out_of_memory(error):
            raise
        raise PluginError(f"{what} failed", got=f"{type(error).__name__}: {error}") from error


def written_over(distribution: importlib.metadata.Distribution) -> str | None:
    """First source file of a distribution whose content differs from the installed one.

    If two distributions contain a package of the same name, the one installed last overwrites the other's files.
    """
    for file in distribution.files or []:
        if file.hash and file.suffix == ".py":
            path = Path(str(distribution.locate_file(file)))
            content = path.read_bytes() if path.is_file() else b""
            digest = hashlib.new(file.hash.mode, content).digest()
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
                return str(file)
    return None
