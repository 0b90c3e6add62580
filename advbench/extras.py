"""Libraries that only extras install: whether one is there, and whether it is what it says."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
from pathlib import Path

from advbench.errors import MissingExtraError


def require(distribution: str, needed_by: str, extra: str) -> importlib.metadata.Distribution:
    """A distribution that an extra installs.

    Args:
        distribution: its name.
        needed_by: what needs it, for the error.
        extra: the extra of advbench that installs it.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtraError(needed_by, distribution, extra) from error


def written_over(distribution: importlib.metadata.Distribution) -> str | None:
    """The first source file of a distribution whose content is no more the one that it installed.

    Two distributions may bring a package of the same name; the one installed last then leaves a mixture.
    """
    for file in distribution.files or []:
        if file.hash and file.suffix == ".py":
            path = Path(str(distribution.locate_file(file)))
            content = path.read_bytes() if path.is_file() else b""
            digest = hashlib.new(file.hash.mode, content).digest()
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
                return str(file)
    return None
