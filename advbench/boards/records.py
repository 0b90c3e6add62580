"""A board's records as one file: one sealed record per line, sorted by key, byte-identical for equal records."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import pydantic_core

from advbench.errors import InputError
from advbench.grid.spec import BOARD
from advbench.report.shape import CIRCUMSTANCES
from advbench.store.records import FORMAT, record_bytes

NAME = BOARD
LARGEST = 2**30  # bytes; limit on an unpacked file
LONGEST = 2**20  # bytes; limit on a record
Record = dict[str, Any]


class Records(dict[str, Record]):
    """Records by key, in memory, with the reading interface of a store."""

    @property
    def checkout(self) -> str | None:
        """Digest of the checkout that computed them, from the first record; None for a release."""
        inputs = next(iter(self.values()), {}).get("inputs")
        found = inputs.get("checkout") if isinstance(inputs, dict) else None
        return found if isinstance(found, str) else None

    def read_record(self, key: str) -> Record | None:
        """Return the record of a task, or None."""
        return self.get(key)

    def read_records(self, keys: Iterable[str]) -> Iterator[Record | None]:
        """Return the records of several tasks, in order."""
        return map(self.get, keys)

    def only(self, keys: Iterable[str]) -> Records:
        """Return the records of the given tasks."""
        return Records({key: self[key] for key in keys if key in self})

    def to_bytes(self) -> bytes:
        """Serialise the records as bytes of the file."""
        file = io.BytesIO()
        with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=file, mtime=0) as packed:
            for key, record in sorted(self.items()):
                body = {name: value for name, value in record.items() if name not in CIRCUMSTANCES}
                packed.write(record_bytes({**body, "key": key, "schema": FORMAT}) + b"\n")
        return file.getvalue()

    @classmethod
    def from_bytes(cls, raw: bytes, what: str) -> Records:
        """Read the result of `to_bytes`.

        Args:
            raw: the bytes.
            what: description of the file, for errors.

        Raises:
            InputError: not a gzip file, too large, or a line is not a sealed record.
        """
        found: dict[str, Record] = {}
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(raw)) as packed:
                content = packed.read(LARGEST + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(what, expected="a gzip file of records, one per line", got=str(error)) from error
        if len(content) > LARGEST:
            raise InputError(what, expected=f"at most {LARGEST:,} bytes, unpacked", got="more")
        for number, line in enumerate(content.splitlines(), 1):
            record = _parse(line)
            if record is None or record["schema"] != FORMAT:
                got = "damaged or edited" if record is None else f"one of format {record['schema']!r}"
                raise InputError(f"line {number} of {what}", expected=f"a sealed record of format {FORMAT}", got=got)
            key = record["key"]
            if key in found:
                raise InputError(f"line {number} of {what}", expected="each record once", got=f"{key[:12]} again")
            found[key] = record
        return cls(sorted(found.items()))


def _parse(line: bytes) -> Record | None:
    """Parse an untrusted line; None unless seal and form are those of `to_bytes`."""
    try:
        record: Record = pydantic_core.from_json(line, allow_inf_nan=False) if len(line) <= LONGEST else {}
        del record["sha256"]
        intact = isinstance(record["key"], str) and "schema" in record and record_bytes(record) == line
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return record if intact else None
