"""Verification of a store: checks each file by place and content; nothing is changed or unpickled."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import safetensors

from advbench.errors import StoreError, printable
from advbench.store.heartbeat import parse_run
from advbench.store.leases import Lease
from advbench.store.records import (
    FORMAT,
    Failure,
    Store,
    artifact_name,
    parse_partial,
    parse_record,
    record_name,
)
from advbench.store.storage import Storage, in_parallel, parsed

Sort = Literal["records", "artifacts", "partial", "failures", "leases", "runs", "temporary", "unknown"]
Problem = Literal["", "damaged", "missing", "unreadable", "unrecorded", "of another schema", "unknown"]
Verdict = tuple[Problem, str]
OK: Verdict = ("", "")

_KEYED = r"/(?P<head>[0-9a-f]{2})/(?P<key>(?P=head)[0-9a-f]{62})"
_FOLDERS = ("records", "artifacts", "partial", "failures", "leases", "runs")
_PLACES: dict[Sort, re.Pattern[str]] = {
    "records": re.compile(rf"records{_KEYED}\.json"),
    "artifacts": re.compile(rf"artifacts{_KEYED}\.safetensors"),
    "partial": re.compile(r"partial/(?P<key>[0-9a-f]{64})\.safetensors"),
    "failures": re.compile(rf"failures{_KEYED}\.json"),
    "leases": re.compile(rf"leases{_KEYED}\.[0-9]+\.json"),
    "runs": re.compile(r"runs/(?P<key>[0-9a-f]{32})\.json"),
    "temporary": re.compile(rf"(?P<key>)(?:(?:{'|'.join(_FOLDERS)})/(?:.*/)?\.[^/]*|partial/probe-[0-9a-f]{{32}})"),
}


@dataclass(frozen=True)
class Found:
    """A file of a store, or a missing one.

    Attributes:
        sort: category by place: a folder of the layout, `temporary` or `unknown`.
        name: name in the store.
        key: key of its task or run; empty for none.
        size: size in bytes; 0 if unknown.
        problem: problem with the file; empty for none.
        detail: details of the problem.
    """

    sort: Sort
    name: str
    key: str = ""
    size: int = 0
    problem: Problem = ""
    detail: str = ""

    @property
    def damage(self) -> bool:
        """True if data were lost; other problems are only reported."""
        return self.problem in ("damaged", "missing", "unreadable")

    def __str__(self) -> str:
        return f"{self.problem or 'ok'}: {printable(self.name)}" + (f": {self.detail}" if self.detail else "")


class _Task(NamedTuple):
    """Kind of a task and digest of its artifact, from its record; a record of another schema has no kind."""

    kind: str
    artifact: str


def verify(store: Store, *, models: bool = True) -> Iterator[Found]:
    """Read and check all files of a store.

    Damage means files that do not match their digest or cannot be parsed or read, and missing artifacts of trainings
    and evaluations; examples are dropped after use. Reported without being damage are artifacts without a record, as
    left by a kill; records of another schema, which this version of advbench ignores; and files that do not
    belong to a store.

    Args:
        store: the store; it is not changed.
        models: True if artifacts of trainings must exist.

    Yields:
        Every file with its problem, if any, and missing files.

    Raises:
        StoreError: the store cannot be read.
    """
    survey = Survey(store.storage)
    yield from survey
    yield from survey.missing(("train", "evaluate") if models else ("evaluate",))


class Survey:
    """Reads and checks the files of a store: records, then artifacts, then other files.

    Keeps only the digests in records in memory.

    Args:
        storage: storage of the store, listed immediately.
        examples: read adversarial examples.

    Attributes:
        tasks: kinds and digests from records, by key.
        whole: keys of tasks whose artifact matches its digest.
    """

    def __init__(self, storage: Storage, *, examples: bool = True) -> None:
        self.tasks: dict[str, _Task] = {}
        self.whole: set[str] = set()
        self._storage = storage
        self._examples = examples
        self._there: set[str] = set()  # existing files, damaged or not
        names = set(self._storage.names(""))
        if self._storage.local:  # a folder may be a link, which the full listing does not follow
            names.update(name for folder in _FOLDERS for name in self._storage.names(folder))
        self._files: dict[Sort, list[Found]] = {sort: [] for sort in (*_PLACES, "unknown")}
        for name in sorted(names):
            sort, key = place(name)
            self._files[sort].append(Found(sort, name, key))

    def __iter__(self) -> Iterator[Found]:
        for files in self._files.values():
            yield from filter(None, in_parallel(self._look, files))

    def missing(self, kinds: Iterable[str]) -> Iterator[Found]:
        """Missing artifacts of tasks of the given kinds; call after all files are read."""
        for key, task in self.tasks.items():
            name = artifact_name(key)
            if task.kind in kinds and task.artifact and name not in self._there and self._storage.read(name) is None:
                what = "weights of a training" if task.kind == "train" else "predictions of an evaluation"
                yield Found("artifacts", name, key, 0, "missing", f"{what} whose record exists")

    def _look(self, file: Found) -> Found | None:
        """Check a file; None if it has been removed."""
        sort, name, key = file.sort, file.name, file.key
        example = sort == "artifacts" and key in self.tasks and self.tasks[key].kind == "craft"
        if sort in ("temporary", "unknown") or (example and not self._examples):
            verdict: Verdict = ("unknown", "it does not belong to a store") if sort == "unknown" else OK
            return Found(sort, name, key, self._storage.size(name), *verdict)
        try:
            raw = self._storage.read(name)
        except StoreError as error:
            if not self._storage.local:  # a failing server would fail for the next file, too
                raise
            self._there.add(name)
            return Found(sort, name, key, 0, "unreadable", str(error).partition(";")[0])
        if raw is None:
            return None
        self._there.add(name)
        return Found(sort, name, key, len(raw), *self._check(sort, key, raw))

    def _check(self, sort: Sort, key: str, raw: bytes) -> Verdict:
        if sort == "records":
            return self._check_record(key, raw)
        if sort == "artifacts":
            return self._check_artifact(key, raw)
        if sort == "partial":
            fits = parse_partial(raw) is not None
            return OK if fits else ("damaged", "its content does not match the digest at its start")
        entry = parse_run(key, raw) if sort == "runs" else parsed(Failure if sort == "failures" else Lease, raw)
        return ("damaged", "its content is invalid") if entry is None else OK

    def _check_record(self, key: str, raw: bytes) -> Verdict:
        record = parse_record(key, raw)
        if record is None:
            return "damaged", "its content does not match its digest or its name"
        current = record["schema"] == FORMAT
        self.tasks[key] = _Task(str(record.get("kind", "")) if current else "", str(record.get("artifact") or ""))
        return OK if current else ("of another schema", f"{record['schema']!r}, while this version has {FORMAT}")

    def _check_artifact(self, key: str, raw: bytes) -> Verdict:
        if key not in self.tasks:  # its record may have been added after the listing
            self._check_record(key, self._storage.read(record_name(key)) or b"")
        if key not in self.tasks:
            return "unrecorded", "it has no record"
        flaw = flaw_of(raw, self.tasks[key].artifact)
        if flaw:
            return "damaged", flaw
        self.whole.add(key)
        return OK


def place(name: str) -> tuple[Sort, str]:
    """Category of a file by its name, and the key in the name."""
    for sort, pattern in _PLACES.items():
        fit = pattern.fullmatch(name)
        if fit:
            return sort, fit["key"]
    return "unknown", ""


def flaw_of(raw: bytes, digest: str) -> str:
    """Problem of an artifact with respect to the SHA-256 in its record; empty for none."""
    if hashlib.sha256(raw).hexdigest() != digest:
        return "it does not match the SHA-256 in its record"
    try:
        safetensors.deserialize(raw)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        return f"it is not a safetensors file ({error})"
    return ""
