"""The records of a board as one file: a sealed record a line, sorted by key, the same bytes for the same records."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pydantic_core

from advbench.errors import InputError
from advbench.report.output import BOARD
from advbench.store.records import FORMAT, parse_record, record_bytes

NAME = BOARD
CIRCUMSTANCES = ("memory", "ran")  # where and when a record was made: host, process, time of day
LARGEST = 2**30  # bytes that a file may unpack to
LONGEST = 2**20  # bytes of a record
Record = dict[str, Any]


class Records:
    """Sealed records by key, in memory; a report is made of them as of a store.

    Args:
        found: records by key.
    """

    def __init__(self, found: Mapping[str, Record]) -> None:
        self._found = dict(sorted(found.items()))

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    @property
    def checkout(self) -> str | None:
        """The digest of the checkout that made them, by what the first of them says; None of a release."""
        inputs = next(iter(self._found.values()), {}).get("inputs")
        found = inputs.get("checkout") if isinstance(inputs, dict) else None
        return found if isinstance(found, str) else None

    def read_record(self, key: str) -> Record | None:
        """The record of a task, or None."""
        return self._found.get(key)

    def read_records(self, keys: Iterable[str]) -> Iterator[Record | None]:
        """The records of several tasks, in their order."""
        return (self._found.get(key) for key in keys)

    def only(self, keys: Iterable[str]) -> Records:
        """Those of these tasks."""
        return Records({key: self._found[key] for key in keys if key in self._found})

    def joined(self, others: Records) -> Records:
        """These, and those of others that are not among them."""
        return Records({**others._found, **self._found})

    def to_bytes(self) -> bytes:
        """The content of the file."""
        file = io.BytesIO()
        with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=file, mtime=0) as packed:
            for key, record in self._found.items():
                body = {name: value for name, value in record.items() if name not in CIRCUMSTANCES}
                packed.write(record_bytes({**body, "key": key, "schema": FORMAT}) + b"\n")
        return file.getvalue()

    @classmethod
    def from_bytes(cls, raw: bytes, what: str) -> Records:
        """The records of a file that `to_bytes` made.

        Args:
            raw: its content.
            what: the file, for the error.

        Raises:
            InputError: it is none, is too large, or a line is no sealed record.
        """
        found: dict[str, Record] = {}
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(raw)) as packed:
                content = packed.read(LARGEST + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(what, expected="a gzip file of records, a line each", got=str(error)) from error
        if len(content) > LARGEST:
            raise InputError(what, expected=f"at most {LARGEST:,} bytes, unpacked", got="more")
        for number, line in enumerate(content.splitlines(), 1):
            key = _key(line)
            record = parse_record(key, line) if key else None
            if record is None or record["schema"] != FORMAT or not _as_written(record, line):
                other = record is not None and record["schema"] != FORMAT
                got = f"one of format {record['schema']!r}" if record and other else "damaged or edited"
                raise InputError(f"line {number} of {what}", expected=f"a sealed record of format {FORMAT}", got=got)
            if key in found:
                raise InputError(f"line {number} of {what}", expected="each record once", got=f"{key[:12]} again")
            found[key] = record
        return cls(found)


def _as_written(record: Record, line: bytes) -> bool:
    """Whether a line is what `to_bytes` makes of a record, which may hold numbers that are not finite."""
    try:
        return record_bytes(record) == line
    except ValueError:
        return False


def _key(line: bytes) -> str:
    """The key that a line states, without trust; empty where it states none."""
    try:
        key = pydantic_core.from_json(line)["key"] if len(line) <= LONGEST else ""
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return key if isinstance(key, str) else ""
