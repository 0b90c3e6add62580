"""Changes several files of a folder together: after a kill, either none has changed or the rest can follow."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from advbench.errors import StoreError
from advbench.store.storage import write_file

MARKER = ".advbench-merge.json"
_ENDING = ".advbench-new"


def is_cut_off(folder: Path) -> bool:
    """Whether a change of the folder began to take its place and did not come to its end."""
    return (folder / MARKER).exists()


def replace_together(folder: Path, files: Mapping[str, bytes], cause: str) -> None:
    """Give files of a folder new content.

    All of it is written under other names first, then a marker that says what belongs where; only then do files take
    their names, and the marker goes last. Without the marker a kill has changed nothing; with it, `finish` ends what
    was begun.

    Args:
        folder: the folder.
        files: the new bytes by name.
        cause: what the change is made of, for whoever finishes it.

    Raises:
        StoreError: the folder cannot be written.
    """
    for name, raw in files.items():
        write_file(folder / _waiting(name), raw)
    digests = {name: hashlib.sha256(raw).hexdigest() for name, raw in files.items()}
    marker = json.dumps({"cause": cause, "files": digests}, indent=1, sort_keys=True)
    write_file(folder / MARKER, marker.encode())
    finish(folder)


def finish(folder: Path) -> str | None:
    """End a change that was cut off, and clear away what one left that had changed nothing yet.

    Returns:
        The cause of the change that was ended; None where there was none.

    Raises:
        StoreError: the folder cannot be written, or what was to take its place is damaged.
    """
    marker = folder / MARKER
    if not marker.exists():
        for path in folder.glob(f".*{_ENDING}"):
            with contextlib.suppress(OSError):
                path.unlink()
        return None
    try:
        values = json.loads(marker.read_bytes())
        for name, digest in values["files"].items():
            if name != Path(name).name:
                raise ValueError(f"{name} is in another folder")
            waiting = folder / _waiting(name)
            if waiting.exists() and hashlib.sha256(waiting.read_bytes()).hexdigest() == digest:
                waiting.replace(folder / name)
            elif hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                raise ValueError(f"{name} is damaged")
        marker.unlink()
        return str(values["cause"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(
            f"the change of {folder} that was cut off cannot be ended: {error}",
            remedy=f"restore the folder as it was, without {MARKER}",
        ) from error


def _waiting(name: str) -> str:
    return f".{Path(name).name}{_ENDING}"
