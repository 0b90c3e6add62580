"""Reads a store file by file and judges each by its place and content; nothing is changed or unpickled."""

from __future__ import annotations

import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple, TypeVar

import fsspec
import safetensors
from fsspec.implementations.local import LocalFileSystem

from advbench.errors import StoreError
from advbench.store.heartbeat import is_entry
from advbench.store.records import FORMAT, Store, artifact_name, parse_record, record_name

THREADS = 8  # files that are read, written or removed at once, and so about the most that are held in memory
AGE = timedelta(hours=1)  # from which a temporary file's writer is taken for dead

Sort = Literal["records", "artifacts", "partial", "failures", "leases", "runs", "temporary", "foreign"]
Problem = Literal["", "damaged", "missing", "unreadable", "unrecorded", "of another schema", "left over", "foreign"]
Verdict = tuple[Problem, str]
SOUND: Verdict = ("", "")

Given = TypeVar("Given")
Made = TypeVar("Made")

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
        return f"{self.problem or 'sound'}: {shown(self.name)}" + (f": {self.detail}" if self.detail else "")


class _Task(NamedTuple):
    """What a record says of its task: kind, and digest of its artifact; a record of another schema has no kind."""

    kind: str
    artifact: str


def verify(store: Store, *, models: bool = True) -> Iterator[Found]:
    """Read everything in a store and judge it.

    Damage is what differs from its digest or cannot be parsed or read, and the artifact of a training or an
    evaluation that is not there; those of crafts are dropped after use. Told, but no damage: artifacts without
    a record, as a kill leaves them; records of another schema, which this version of advbench ignores;
    temporary files older than an hour; and files that do not belong to a store.

    Args:
        store: the store; it is not changed.
        models: whether artifacts of trainings should be there.

    Yields:
        Every file, sound or not, and what is missing.

    Raises:
        StoreError: the store cannot be read.
    """
    survey = Survey(store)
    yield from survey.records()
    yield from survey.artifacts()
    yield from survey.missing(("train", "evaluate") if models else ("evaluate",))
    yield from survey.partial()
    for folder in ("failures", "leases", "runs"):
        yield from survey.entries(folder)
    now = datetime.now(UTC)
    for found in survey.unread("temporary"):
        if survey.old(found.name, now):
            yield Found("temporary", found.name, "", found.size, "left over", "its writer ended before it was whole")
        else:
            yield found
    yield from survey.unread("foreign", "foreign", "it does not belong to a store")


class Survey:
    """Judges a store's files, sort by sort; keeps in memory only what records vouch for.

    Args:
        store: the store; it is listed at once.
    """

    def __init__(self, store: Store) -> None:
        self._storage = store.storage
        self._disk, self._root = fsspec.core.url_to_fs(store.url)
        self._local = isinstance(self._disk, LocalFileSystem)
        self.items: dict[Sort, list[tuple[str, str]]] = {sort: [] for sort in (*_PLACES, "foreign")}
        names = set(self._storage.names(""))
        if self._local:  # where a folder may be a link, which the listing of all does not follow
            names.update(name for folder in _FOLDERS for name in self._storage.names(folder))
        for name in sorted(names):
            sort, key = place(name)
            self.items[sort].append((name, key))
        self.tasks: dict[str, _Task] = {}
        self.whole: set[str] = set()  # tasks whose artifact is the one that their record names
        self._seen: set[str] = set()

    def records(self) -> Iterator[Found]:
        """Records; they come before artifacts."""
        return self._judged("records", self._judge_record)

    def artifacts(self) -> Iterator[Found]:
        """Artifacts."""
        for found in self._judged("artifacts", self._judge_artifact):
            self._seen.add(found.key)
            yield found

    def missing(self, kinds: Iterable[str]) -> Iterator[Found]:
        """Artifacts of such tasks that records vouch for and that are not there; they come after artifacts."""
        for key, task in self.tasks.items():
            name = artifact_name(key)
            if task.kind in kinds and task.artifact and key not in self._seen and self._storage.read(name) is None:
                what = "weights of a training" if task.kind == "train" else "predictions of an evaluation"
                yield Found("artifacts", name, key, 0, "missing", f"the {what} that is done")

    def partial(self) -> Iterator[Found]:
        """States of unfinished trainings."""
        return self._judged("partial", _judge_partial)

    def entries(self, folder: Literal["failures", "leases", "runs"]) -> Iterator[Found]:
        """What is JSON without a digest."""
        belongs = {"failures": _is_failure, "leases": _is_lease, "runs": is_entry}[folder]
        foreign: Verdict = ("damaged", "it does not hold what belongs there")
        return self._judged(folder, lambda key, raw: SOUND if belongs(_parsed(raw), key) else foreign)

    def unread(self, sort: Sort, problem: Problem = "", detail: str = "") -> Iterator[Found]:
        """Files of a sort, without a look into them."""
        return in_parallel(
            lambda item: Found(sort, *item, self.size(item[0]), problem, detail), tuple(self.items[sort])
        )

    def size(self, name: str) -> int:
        """Bytes of a file; 0 where the file system does not tell."""
        try:
            return int(self._disk.info(f"{self._root}/{name}")["size"] or 0)
        except Exception:
            return 0

    def now(self, name: str) -> datetime:
        """When a file was written that has just been, by the file system's clock, or else by this machine's."""
        try:
            return self._changed(name)
        except Exception:
            return datetime.now(UTC)

    def old(self, name: str, now: datetime) -> bool:
        """Whether a temporary file is so old that its writer is dead; where its age is not told it is."""
        try:
            return now - self._changed(name) > AGE
        except FileNotFoundError:
            return False
        except Exception:
            return True

    def _changed(self, name: str) -> datetime:
        told: datetime = self._disk.modified(f"{self._root}/{name}")
        return told if told.tzinfo else told.replace(tzinfo=UTC)

    def _judged(self, sort: Sort, judge: Callable[[str, bytes], Verdict]) -> Iterator[Found]:
        def look(item: tuple[str, str]) -> Found | None:
            name, key = item
            try:
                raw = self._storage.read(name)
            except StoreError as error:
                if not self._local:  # a server that fails will not give the next file either
                    raise
                return Found(sort, name, key, 0, "unreadable", str(error).partition(";")[0])
            return None if raw is None else Found(sort, name, key, len(raw), *judge(key, raw))

        return (found for found in in_parallel(look, tuple(self.items[sort])) if found is not None)

    def _judge_record(self, key: str, raw: bytes) -> Verdict:
        record = parse_record(key, raw)
        if record is None:
            return "damaged", "its content does not fit its digest or its name"
        current = record["schema"] == FORMAT
        self.tasks[key] = _Task(str(record.get("kind", "")) if current else "", str(record.get("artifact") or ""))
        return SOUND if current else ("of another schema", f"{record['schema']!r}, while this version has {FORMAT}")

    def _judge_artifact(self, key: str, raw: bytes) -> Verdict:
        if key not in self.tasks:  # its record may have come since the listing
            self._judge_record(key, self._storage.read(record_name(key)) or b"")
        if key not in self.tasks:
            return "unrecorded", "no record vouches for it"
        flaw = flaw_of(raw, self.tasks[key].artifact)
        if flaw:
            return "damaged", flaw
        self.whole.add(key)
        return SOUND


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


def _is_failure(entry: object, key: str) -> bool:
    del key
    return isinstance(entry, dict) and isinstance(entry.get("reason"), str)


def _is_lease(entry: object, key: str) -> bool:
    del key
    return isinstance(entry, dict) and isinstance(entry.get("driver"), str)


def _judge_partial(key: str, raw: bytes) -> Verdict:
    del key
    sound = hashlib.sha256(raw[64:]).hexdigest().encode() == raw[:64]
    return SOUND if sound else ("damaged", "its content does not fit the digest at its head")


def _parsed(raw: bytes) -> object:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def shown(name: str) -> str:
    """A file's name as it may be printed, whatever is in it."""
    return name if name.isprintable() else ascii(name)


def in_parallel(act: Callable[[Given], Made], items: Iterable[Given]) -> Iterator[Made]:
    """Do something with each item, several at once; results come in the order of the items."""
    with ThreadPoolExecutor(THREADS, "advbench-upkeep") as pool:
        begun: deque[Future[Made]] = deque()
        for item in items:
            begun.append(pool.submit(act, item))
            if len(begun) >= THREADS:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
