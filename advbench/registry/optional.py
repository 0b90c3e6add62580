"""Libraries that only extras install: whether one is installed, whether it is intact, and calls into it."""

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
    """A distribution that an extra installs.

    Args:
        distribution: its name.
        needed_by: the feature that needs it, for the error.
        extra: the extra of advbench that installs it.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtraError(needed_by, distribution, extra) from error


@contextlib.contextmanager
def calling(what: str) -> Iterator[None]:
    """Run another library's code; its failures become errors of one line, whose cause keeps the traceback.

    Args:
        what: the code, for the error.

    Raises:
        PluginError: the library failed. Running out of memory is not its failure, and is raised unchanged.
    """
    try:
        yield
    except FAILURES as error:
        if out_of_memory(error):
            raise
        raise PluginError(f"{what} failed", got=f"{type(error).__name__}: {error}") from error


def written_over(distribution: importlib.metadata.Distribution) -> str | None:
    """The first source file of a distribution whose content differs from the one that it installed.

    If two distributions contain a package of the same name, the one installed last overwrites files of the other.
    """
    for file in distribution.files or []:
        if file.hash and file.suffix == ".py":
            path = Path(str(distribution.locate_file(file)))
            content = path.read_bytes() if path.is_file() else b""
            digest = hashlib.new(file.hash.mode, content).digest()
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
                return str(file)
    return None
