"""Reads a store file by file and checks each by its place and content; nothing is changed or unpickled."""

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

Sort = Literal["records", "artifacts", "partial", "failures", "leases", "runs", "temporary", "foreign"]
Problem = Literal["", "damaged", "missing", "unreadable", "unrecorded", "of another schema", "foreign"]
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
    """A file of a store, or one that should be there.

    Attributes:
        sort: what it is by its place: a folder of the layout, or `temporary` or `foreign`.
        name: its name in the store.
        key: of its task or run; empty where it has none.
        size: bytes; 0 where the file system does not tell.
        problem: what is wrong with it; empty if nothing is.
        detail: more about that.
    """

    sort: Sort
    name: str
    key: str = ""
    size: int = 0
    problem: Problem = ""
    detail: str = ""

    @property
    def damage(self) -> bool:
        """Whether something was lost; any other problem is only worth a line."""
        return self.problem in ("damaged", "missing", "unreadable")

    def __str__(self) -> str:
        return f"{self.problem or 'sound'}: {printable(self.name)}" + (f": {self.detail}" if self.detail else "")


class _Task(NamedTuple):
    """What a record says of its task: kind, and digest of its artifact; a record of another schema has no kind."""

    kind: str
    artifact: str


def verify(store: Store, *, models: bool = True) -> Iterator[Found]:
    """Read everything in a store and check it.

    Damage is what differs from its digest or cannot be parsed or read, and the artifact of a training or an
    evaluation that is not there; those of crafts are dropped after use. Reported, but no damage: artifacts without
    a record, as a kill leaves them; records of another schema, which this version of advbench ignores;
    and files that do not belong to a store.

    Args:
        store: the store; it is not changed.
        models: whether artifacts of trainings should be there.

    Yields:
        Every file, sound or not, and what is missing.

    Raises:
        StoreError: the store cannot be read.
    """
    survey = Survey(store.storage)
    yield from survey
    yield from survey.missing(("train", "evaluate") if models else ("evaluate",))


class Survey:
    """The files of a store, each read and checked: records, then artifacts, then all else.

    Keeps in memory only what records vouch for.

    Args:
        storage: of the store; it is listed at once.
        examples: whether adversarial examples are read.

    Attributes:
        tasks: what records say, by key.
        whole: tasks whose artifact is the one that their record names.
    """

    def __init__(self, storage: Storage, *, examples: bool = True) -> None:
        self.tasks: dict[str, _Task] = {}
        self.whole: set[str] = set()
        self._storage = storage
        self._examples = examples
        self._there: set[str] = set()  # files that were there, damaged or not
        names = set(self._storage.names(""))
        if self._storage.local:  # where a folder may be a link, which the listing of all does not follow
            names.update(name for folder in _FOLDERS for name in self._storage.names(folder))
        self._files: dict[Sort, list[Found]] = {sort: [] for sort in (*_PLACES, "foreign")}
        for name in sorted(names):
            sort, key = place(name)
            self._files[sort].append(Found(sort, name, key))

    def __iter__(self) -> Iterator[Found]:
        for files in self._files.values():
            yield from filter(None, in_parallel(self._look, files))

    def missing(self, kinds: Iterable[str]) -> Iterator[Found]:
        """Artifacts of such tasks that records vouch for and that are not there; it comes last."""
        for key, task in self.tasks.items():
            name = artifact_name(key)
            if task.kind in kinds and task.artifact and name not in self._there and self._storage.read(name) is None:
                what = "weights of a training" if task.kind == "train" else "predictions of an evaluation"
                yield Found("artifacts", name, key, 0, "missing", f"the {what} that is done")

    def _look(self, file: Found) -> Found | None:
        """A file with what is wrong with it; None where it is gone."""
        sort, name, key = file.sort, file.name, file.key
        example = sort == "artifacts" and key in self.tasks and self.tasks[key].kind == "craft"
        if sort in ("temporary", "foreign") or (example and not self._examples):
            verdict: Verdict = ("foreign", "it does not belong to a store") if sort == "foreign" else OK
            return Found(sort, name, key, self._storage.size(name), *verdict)
        try:
            raw = self._storage.read(name)
        except StoreError as error:
            if not self._storage.local:  # a server that fails will not give the next file either
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
            return OK if fits else ("damaged", "its content does not fit the digest at its head")
        entry = parse_run(key, raw) if sort == "runs" else parsed(Failure if sort == "failures" else Lease, raw)
        return ("damaged", "it does not hold what belongs there") if entry is None else OK

    def _check_record(self, key: str, raw: bytes) -> Verdict:
        record = parse_record(key, raw)
        if record is None:
            return "damaged", "its content does not fit its digest or its name"
        current = record["schema"] == FORMAT
        self.tasks[key] = _Task(str(record.get("kind", "")) if current else "", str(record.get("artifact") or ""))
        return OK if current else ("of another schema", f"{record['schema']!r}, while this version has {FORMAT}")

    def _check_artifact(self, key: str, raw: bytes) -> Verdict:
        if key not in self.tasks:  # its record may have come since the listing
            self._check_record(key, self._storage.read(record_name(key)) or b"")
        if key not in self.tasks:
            return "unrecorded", "no record vouches for it"
        flaw = flaw_of(raw, self.tasks[key].artifact)
        if flaw:
            return "damaged", flaw
        self.whole.add(key)
        return OK


def place(name: str) -> tuple[Sort, str]:
    """What a file is by its name, and the key that is in the name."""
    for sort, pattern in _PLACES.items():
        fit = pattern.fullmatch(name)
        if fit:
            return sort, fit["key"]
    return "foreign", ""


def flaw_of(raw: bytes, digest: str) -> str:
    """What is wrong with an artifact of which a record gives the SHA-256; empty if nothing is."""
    if hashlib.sha256(raw).hexdigest() != digest:
        return "its bytes are not those that its record vouches for"
    try:
        safetensors.deserialize(raw)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        return f"it is no safetensors file ({error})"
    return ""
