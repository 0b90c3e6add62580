"""The upkeep of a store: what verify finds, what gc removes and keeps, what export and import carry."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from helpers import Harmful
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.filesize import decimal

from advbench.cli.app import main
from advbench.errors import InputError, StoreError
from advbench.grid.estimates import Measured
from advbench.keys import content_key
from advbench.store import gc as sweeping
from advbench.store.archive import export, import_
from advbench.store.gc import collect_garbage
from advbench.store.heartbeat import Heartbeat, machine, measured, runs
from advbench.store.leases import Leases
from advbench.store.records import FORMAT, Store
from advbench.store.storage import Storage, StoreWarning, in_parallel
from advbench.store.verify import Found, Survey, verify

OPTIONS = (
    "--defense erm,bnn --attack fgsm,pgd --affinity fgsm,pgd --eps 0.1 --limit 20 --draws 3 "
    "--set erm.stages=[1] --set bnn.stages=[1] "
    "--set pgd.steps=2"
).split()
COUNTS = {"train": 2, "craft": 4, "evaluate": 10}
KEY, OTHER = content_key("a task"), content_key("another task")
TENSORS = safetensors.numpy.save({"a": np.arange(6, dtype=np.float32).reshape(2, 3)})
HOUR = 3600.0

Capture = pytest.CaptureFixture[str]


@dataclass
class Done:
    """A finished run: its store, and its --out folder."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "store"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def store(self) -> Store:
        return Store(str(self.root))

    def of(self, kind: str) -> list[str]:
        """Keys of the tasks of a kind."""
        records = (json.loads(path.read_bytes()) for path in sorted(self.root.glob("records/*/*.json")))
        return [record["key"] for record in records if record["kind"] == kind]

    def record(self, key: str) -> Path:
        return self.root / "records" / key[:2] / f"{key}.json"

    def artifact(self, key: str) -> Path:
        return self.root / "artifacts" / key[:2] / f"{key}.safetensors"

    def partial(self, key: str) -> Path:
        return self.root / "partial" / f"{key}.safetensors"

    def run(self) -> int:
        return main(["run", *OPTIONS, "--store", str(self.root), "--out", str(self.out), "--keep-examples"])


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A run whose examples were kept; not to be changed."""
    done = Done(tmp_path_factory.mktemp("upkeep"))
    assert done.run() == 0
    return done


@pytest.fixture
def done(original: Done, tmp_path: Path) -> Done:
    """A copy of it."""
    shutil.copytree(original.folder, tmp_path / "run")
    return Done(tmp_path / "run")


def command(*words: str | Path) -> int:
    return main(["store", *map(str, words)])


def problems(store: Store, **options: bool) -> dict[str, str]:
    """What `verify` complains of: problem by name."""
    return {found.name: found.problem for found in verify(store, **options) if found.problem}


def files(folder: Path) -> dict[str, bytes]:
    """Content of all files below a folder."""
    return {
        str(Path(top, name).relative_to(folder)): Path(top, name).read_bytes()
        for top, _, names in os.walk(folder)
        for name in names
    }


def put(store: Store, key: str, tensors: bytes = TENSORS, **body: Any) -> None:
    """A small record with its artifact."""
    body = {"kind": "evaluate", "seconds": 1.0, "result": {"accuracy": 0.5}, **body}
    store.write_record(key, {**body, "artifact": store.write_artifact(key, tensors)})


# Verify


def test_a_run_leaves_a_sound_store(done: Done, capsys: Capture) -> None:
    before = files(done.root)
    assert command("verify", "--store", done.root) == 0
    size = sum(path.stat().st_size for path in done.root.glob("artifacts/*/*"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in lines] == ["records: 16", "artifacts: 16", "runs: 1", "all ok"]
    assert lines[1] == f"artifacts: 16, {decimal(size)}"
    assert files(done.root) == before


def test_the_store_of_the_environment_is_taken(done: Done, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("ADVBENCH_STORE", str(done.root))
    assert command("verify") == 0
    assert "records: 16" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["verify", "export"])
def test_a_store_that_is_not_there_is_one_line(name: str, tmp_path: Path, capsys: Capture) -> None:
    words = [name, tmp_path / "a.tar"] if name == "export" else [name]
    assert command(*words, "--store", tmp_path / "absent") == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: store '[^\n]*absent' (is empty|has no)[^\n]*--store\n", err)
    assert files(tmp_path) == {}


RUIN: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda raw: raw[: len(raw) // 2],
    "empty": lambda raw: b"",
    "foreign": lambda raw: b'{"a": 1}',
    "deep": lambda raw: b"[" * 100_000,
    "flipped": lambda raw: raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:],
    "zeros": lambda raw: bytes(len(raw)),
}


@pytest.mark.parametrize("ruin", RUIN.values(), ids=RUIN)
@pytest.mark.parametrize("sort", ["records", "artifacts", "partial"])
def test_damage_is_told_by_name(sort: str, ruin: Callable[[bytes], bytes], done: Done, capsys: Capture) -> None:
    key = done.of("evaluate")[0]
    done.store.write_partial(key, b"state" * 20)
    path = {"records": done.record, "artifacts": done.artifact, "partial": done.partial}[sort](key)
    assert command("verify", "--store", done.root) == 0
    path.write_bytes(ruin(path.read_bytes()))
    capsys.readouterr()
    assert command("verify", "--store", done.root) == 1
    out = capsys.readouterr().out
    assert f"damaged: {path.relative_to(done.root)}: " in out
    assert out.endswith("1 damaged or missing\n")
    assert ("unrecorded: " in out) == (sort == "records")


@pytest.mark.parametrize("raw", [b"", b"null", b"[]", b"{}", b"[" * 100_000, b"\xff", b'{"reason": 1, "driver": 1}'])
@pytest.mark.parametrize("folder", ["failures", "leases", "runs"])
def test_entries_that_hold_something_else_are_damaged(folder: str, raw: bytes, done: Done) -> None:
    key = done.of("train")[0]
    names = {
        "failures": f"failures/{key[:2]}/{key}.json",
        "leases": f"leases/{key[:2]}/{key}.3.json",
        "runs": f"runs/{uuid.uuid4().hex}.json",
    }
    sound = {"failures": {"reason": "it broke"}, "leases": {"driver": "me"}, "runs": None}[folder]
    if sound is not None:
        done.store.storage.write(names[folder], json.dumps(sound).encode())
        assert problems(done.store) == {}
    done.store.storage.write(names[folder], raw)
    assert problems(done.store) == {names[folder]: "damaged"}


def test_a_tensor_file_that_its_record_vouches_for_must_be_one(done: Done) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 0]}}).encode()
    endless = len(header).to_bytes(8, "little") + header
    for raw in (b"no tensors", endless, bytes(8), b"\xff" * 100):
        put(done.store, KEY, raw)
        (found,) = [each for each in verify(done.store) if each.problem]
        assert (found.problem, found.key) == ("damaged", KEY)
        assert "not a safetensors file" in found.detail


def test_artifacts_that_are_gone_are_missing_unless_they_are_examples(done: Done, capsys: Capture) -> None:
    trained, crafted, judged = (done.of(kind)[0] for kind in ("train", "craft", "evaluate"))
    for key in (trained, crafted, judged):
        done.artifact(key).unlink()
    gone = {str(done.artifact(key).relative_to(done.root)): "missing" for key in (trained, judged)}
    assert problems(done.store) == gone
    assert list(problems(done.store, models=False)) == [str(done.artifact(judged).relative_to(done.root))]
    assert command("verify", "--store", done.root) == 1
    out = capsys.readouterr().out
    assert "weights of a training whose record exists" in out
    assert "predictions of an evaluation whose record exists" in out
    assert "artifacts: 13," in out
    done.artifact(judged).symlink_to("nowhere")
    assert problems(done.store) == gone


def test_what_is_no_damage_is_told_but_does_not_fail(done: Done, capsys: Capture) -> None:
    store = done.store
    body = {"kind": "train", "key": KEY, "schema": FORMAT - 1, "artifact": store.write_artifact(KEY, TENSORS)}
    store.storage.write(f"records/{KEY[:2]}/{KEY}.json", json.dumps({**body, "sha256": content_key(body)}).encode())
    store.write_artifact(OTHER, TENSORS)
    for name in ("notes.txt", "records/readme", f"records/00/{KEY}.json", f"artifacts/{KEY[:2]}/{KEY}.pt", ".hidden"):
        store.storage.write(name, b"mine")
    store.storage.write("runs/odd\nname", b"mine")
    temporary = done.root / "records" / KEY[:2] / f".{KEY}.json.{uuid.uuid4().hex}.tmp"
    temporary.write_bytes(b"half")
    assert problems(store) == {
        f"records/{KEY[:2]}/{KEY}.json": "of another schema",
        f"artifacts/{OTHER[:2]}/{OTHER}.safetensors": "unrecorded",
        "notes.txt": "unknown",
        "records/readme": "unknown",
        f"records/00/{KEY}.json": "unknown",
        f"artifacts/{KEY[:2]}/{KEY}.pt": "unknown",
        ".hidden": "unknown",
        "runs/odd\nname": "unknown",
    }
    assert command("verify", "--store", done.root) == 0
    out = capsys.readouterr().out
    assert f"of another schema: records/{KEY[:2]}/{KEY}.json: {FORMAT - 1}, while this version has {FORMAT}" in out
    assert r"unknown: runs/odd\nname: " in out
    assert "unknown: 6, 24 bytes" in out
    assert "temporary: 1, 4 bytes" in out


def test_an_artifact_whose_record_comes_after_the_listing_is_sound(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    digest = store.write_artifact(KEY, TENSORS)
    listed = Survey(store.storage)
    store.write_record(KEY, {"kind": "train", "artifact": digest})
    assert [(found.sort, found.problem) for found in listed] == [("artifacts", "")]


def test_a_folder_that_is_a_link_is_read(done: Done, tmp_path: Path) -> None:
    (done.root / "artifacts").rename(tmp_path / "elsewhere")
    (done.root / "artifacts").symlink_to(tmp_path / "elsewhere")
    assert sum(found.sort == "artifacts" for found in verify(done.store)) == 16
    done.artifact(done.of("train")[0]).write_bytes(b"")
    assert list(problems(done.store).values()) == ["damaged"]


def test_a_file_that_cannot_be_read_is_told_and_the_rest_is_read(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    store, bad = done.store, str(done.artifact(done.of("train")[0]).relative_to(done.root))
    read = type(store.storage).read

    def failing(self: Any, name: str) -> bytes | None:
        if name == bad:
            raise StoreError("cannot read it: Input/output error", remedy="mend it")
        return read(self, name)

    monkeypatch.setattr(type(store.storage), "read", failing)
    assert problems(store) == {bad: "unreadable"}
    assert "damaged artifacts" not in collect_garbage(store)
    assert (done.root / bad).exists()
    far = Store(f"memory://{uuid.uuid4().hex}")
    far.storage.write(bad, b"")
    with pytest.raises(StoreError, match="Input/output error"):
        list(verify(far))


def test_a_remote_store_is_kept_up_as_a_local_one(done: Done, tmp_path: Path) -> None:
    far = Store(f"memory://{uuid.uuid4().hex}/store")
    for name, raw in files(done.root).items():
        far.storage.write(name, raw)
    assert [str(found) for found in verify(far)] == [str(found) for found in verify(done.store)]
    packed, again = (export(store, tmp_path / name) for store, name in ((far, "far.tar"), (done.store, "near.tar")))
    assert packed == again
    assert (tmp_path / "far.tar").read_bytes() == (tmp_path / "near.tar").read_bytes()
    far.storage.write(f"artifacts/{KEY[:2]}/{KEY}.safetensors", b"orphan")
    removed = {what: amount.count for what, amount in collect_garbage(far).items()}
    assert removed == {"examples": 4, "unrecorded artifacts": 1}
    assert problems(far) == {}
    other = Store(f"memory://{uuid.uuid4().hex}/store")
    assert import_(other, tmp_path / "far.tar").records == 16
    assert problems(other) == {}


# Garbage


def test_gc_removes_what_nothing_needs_and_the_same_command_then_runs_nothing(done: Done, capsys: Capture) -> None:
    table = (done.out / "results.csv").read_bytes()
    examples = [done.artifact(key) for key in done.of("craft")]
    size = sum(path.stat().st_size for path in examples)
    before = files(done.root)
    capsys.readouterr()
    assert command("gc", "--dry-run", "--store", done.root) == 0
    assert capsys.readouterr().out == f"would remove 4 examples, {decimal(size)}\n"
    assert files(done.root) == before
    assert command("gc", "--store", done.root) == 0
    assert capsys.readouterr().out == f"removed 4 examples, {decimal(size)}\n"
    gone = {name for name in before if name not in files(done.root)}
    assert gone == {str(path.relative_to(done.root)) for path in examples}
    assert command("gc", "--store", done.root) == 0
    assert capsys.readouterr().out == "nothing to remove\n"
    assert command("verify", "--store", done.root) == 0
    assert done.run() == 0
    assert "nothing to do: all 16 tasks are already done" in capsys.readouterr().out
    assert (done.out / "results.csv").read_bytes() == table


def test_gc_keeps_examples_and_failures_if_asked(done: Done) -> None:
    done.store.write_failure(KEY, {"reason": "it broke"})
    done.store.write_failure(done.of("craft")[0], {"reason": "done since"})
    done.store.write_failure(done.of("train")[0], {"reason": "done since"})
    removed = collect_garbage(done.store, keep_examples=True)
    assert {what: amount.count for what, amount in removed.items()} == {"failures": 2}
    assert done.store.failed_keys() == {KEY}
    assert collect_garbage(done.store, keep_examples=True, failures=True)["failures"].count == 1
    assert done.store.failed_keys() == set()
    assert done.artifact(done.of("craft")[0]).exists()


def test_a_craft_that_failed_when_tried_again_is_remembered(done: Done) -> None:
    key = done.of("craft")[0]
    done.store.drop_artifact(key)
    done.store.write_failure(key, {"reason": "it broke"})
    assert "failures" not in collect_garbage(done.store)
    assert done.store.failed_keys() == {key}


def test_gc_removes_damage_of_every_sort_and_keeps_what_is_foreign(done: Done) -> None:
    first, second, third = done.of("evaluate")[:3]
    store = done.store
    damage = {
        f"records/{first[:2]}/{first}.json": b"{",
        f"artifacts/{second[:2]}/{second}.safetensors": b"",
        f"partial/{third}.safetensors": b"x" * 100,
        f"failures/{third[:2]}/{third}.json": b"[]",
        f"leases/{third[:2]}/{third}.0.json": b"[" * 100_000,
        f"runs/{uuid.uuid4().hex}.json": b"null",
    }
    kept = {"notes.txt": b"mine", f"records/{first[:2]}/note": b"mine", ".dot": b"mine"}
    for name, raw in {**damage, **kept}.items():
        store.storage.write(name, raw)
    forecast = collect_garbage(store, dry_run=True)
    removed = collect_garbage(store)
    assert forecast == removed
    assert {what: amount.count for what, amount in removed.items()} == {
        "damaged records": 1,
        "damaged artifacts": 1,
        "unrecorded artifacts": 1,
        "damaged states": 1,
        "damaged failures": 1,
        "damaged leases": 1,
        "damaged runs": 1,
        "examples": 4,
    }
    there = files(done.root)
    assert kept.items() <= there.items()
    assert not damage.keys() & there.keys()
    assert set(problems(store).values()) == {"unknown", "missing"}


def test_states_are_removed_only_once_their_training_is_done_and_there(done: Done) -> None:
    trained, again = done.of("train")
    for key in (trained, again, KEY):
        done.store.write_partial(key, b"state")
    done.artifact(again).unlink()
    removed = collect_garbage(done.store)
    assert removed["checkpoints of finished tasks"].count == 1
    assert [done.partial(key).exists() for key in (trained, again, KEY)] == [False, True, True]


def test_results_of_another_schema_are_another_versions_and_stay(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    body = {"kind": "craft", "key": KEY, "schema": FORMAT + 1, "artifact": store.write_artifact(KEY, TENSORS)}
    store.storage.write(f"records/{KEY[:2]}/{KEY}.json", json.dumps({**body, "sha256": content_key(body)}).encode())
    assert collect_garbage(store) == {}
    assert f"artifacts/{KEY[:2]}/{KEY}.safetensors" in files(tmp_path)


def test_temporary_files_go(done: Done) -> None:
    names = {
        f"records/{KEY[:2]}/.{KEY}.json.{uuid.uuid4().hex}.tmp": False,
        f"partial/probe-{uuid.uuid4().hex}": False,
        f"runs/.{uuid.uuid4().hex}.json.{uuid.uuid4().hex}.tmp": False,
        ".dot": True,
    }
    for name in names:
        done.store.storage.write(name, b"half")
    amount = collect_garbage(done.store)["temporary files"]
    assert (amount.count, amount.size) == (3, 12)
    assert {name: name in files(done.root) for name in names} == names


def test_a_temporary_file_that_takes_its_name_meanwhile_is_not_left_over(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.storage.write("records/ab/.x.tmp", b"half")
    findings = verify(store)
    store.storage.write("runs/.y.tmp", b"half")
    assert next(findings).sort == "temporary"
    store.storage.remove("runs/.y.tmp")
    assert [found.problem for found in findings] == [""]


def test_leases_of_dead_drivers_go(done: Done) -> None:
    store = done.store
    for number in range(3):
        store.storage.write(f"leases/{KEY[:2]}/{KEY}.{number}.json", b'{"driver": "dead"}')
    store.storage.write(f"leases/{OTHER[:2]}/{OTHER}.0.json", b'{"driver": "dead"}')
    for number in range(40):
        key = content_key(number)
        store.storage.write(f"leases/{key[:2]}/{key}.0.json", b"{")
    removed = collect_garbage(store)
    assert (removed["leases"].count, removed["leases"].size) == (2, 4 * 18)
    assert removed["damaged leases"].count == 40
    assert store.storage.names("leases") == []


def test_a_lease_that_a_driver_has_just_taken_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    store.storage.write(f"leases/{KEY[:2]}/{KEY}.0.json", b'{"driver": "dead"}')
    heartbeat = Heartbeat(store.storage, beat=HOUR)
    check = sweeping._refuse_use

    def begin(store: Store, liveness: Any, silence: float, own: str = "") -> None:
        if not own:
            check(store, liveness, silence)
            return
        heartbeat.open()
        assert Leases(store.storage, heartbeat.id, liveness).acquire(KEY)

    monkeypatch.setattr(sweeping, "_refuse_use", begin)
    assert "leases" not in collect_garbage(store)
    assert store.storage.names("leases") == [f"leases/{KEY[:2]}/{KEY}.{number}.json" for number in (0, 1)]
    heartbeat.close("done")


def entry(**changes: Any) -> dict[str, Any]:
    """A heartbeat's entry, of a driver that has ended."""
    body = {"id": uuid.uuid4().hex, "about": "erm under fgsm", "state": "done", "host": "here", "machine": machine()}
    body |= {"pid": 1, "born": "0", "beats": 3, "started": "2026-01-01T00:00:00+00:00", "measured": {}}
    body["updated"] = body["started"]
    return {**body, **changes}


def test_old_heartbeats_go_and_what_they_measured_stays(tmp_path: Path, capsys: Capture) -> None:
    store = Store(str(tmp_path))
    entries = []
    for day in range(1, 29):
        cost = vars(Measured("train", "small_cnn", float(day), 10.0, None, None, float(day)))
        state = "running" if day % 2 else "done"  # a driver that died did not say so
        last = f"2026-02-{day:02}T00:00:00+00:00"
        entries.append(entry(started=last, state=state, measured={f"profile {day}": cost, "every": cost}))
    for each in entries:
        store.storage.write(f"runs/{each['id']}.json", json.dumps(each).encode())
    before = measured(store.storage)
    assert len(before) == 29
    assert collect_garbage(store, dry_run=True)["heartbeats"].count == 8
    for removed in (8, 0, 0):
        amounts = collect_garbage(store)
        assert (amounts["heartbeats"].count if removed else amounts) == (removed or {})
        assert measured(store.storage) == before
        left = list(runs(store.storage))
        assert {run.id for run in left if run.upkeep is None} == {each["id"] for each in entries[-20:]}
        assert [run.state for run in left if run.upkeep] == ["done"]
    assert main(["status", "--store", str(tmp_path)]) == 0
    assert "done: store gc" in capsys.readouterr().out


def test_gc_refuses_a_store_that_a_live_driver_uses(done: Done, capsys: Capture) -> None:
    heartbeat = Heartbeat(done.store.storage, "bnn under pgd")
    heartbeat.open()
    try:
        before = files(done.root)
        for options in ((), ("--dry-run",)):
            assert command("gc", "--store", done.root, *options) == 2
            err = capsys.readouterr().err
            assert re.fullmatch(
                rf"error: store [^\n]* in use by run {heartbeat.id[:8]} \(bnn under pgd\), "
                rf"process {os.getpid()} [^\n]*; wait until it has ended, or stop it\n",
                err,
            )
            assert {n: raw for n, raw in files(done.root).items() if heartbeat.id not in n} == {
                n: raw for n, raw in before.items() if heartbeat.id not in n
            }
    finally:
        heartbeat.close("done")
    assert command("gc", "--store", done.root) == 0


def test_gc_refuses_until_a_killed_driver_is_gone(done: Done) -> None:
    code = f"""
import time
from advbench.store.heartbeat import Heartbeat
from advbench.store.records import Store
Heartbeat(Store({str(done.root)!r}).storage).open()
print("open", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"open\n"
        with pytest.raises(InputError, match=f"in use by run .* process {driver.pid}"):
            collect_garbage(done.store)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert collect_garbage(done.store)["examples"].count == 4


def test_a_driver_elsewhere_is_watched_until_it_beats_or_was_silent(done: Done) -> None:
    store = done.store
    far = entry(state="running", machine="another one")
    store.storage.write(f"runs/{far['id']}.json", json.dumps(far).encode())
    with pytest.warns(StoreWarning, match="a run on another machine may use"):
        assert collect_garbage(store, dry_run=True, silence=0.2)["examples"].count == 4

    def beating() -> Iterator[int]:
        for beats in range(4, 100):
            store.storage.write(f"runs/{far['id']}.json", json.dumps({**far, "beats": beats}).encode())
            yield beats

    beats = beating()
    patch = pytest.MonkeyPatch()
    patch.setattr(sweeping.time, "sleep", lambda seconds: next(beats))
    with patch.context(), pytest.warns(StoreWarning), pytest.raises(InputError, match="on here; wait until"):
        collect_garbage(store, silence=5)
    patch.undo()
    assert done.artifact(done.of("craft")[0]).exists()


def test_a_driver_that_begins_meanwhile_stops_the_sweep(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    heartbeat = Heartbeat(done.store.storage)
    listing = sweeping.Survey

    def begin(storage: Storage, **options: bool) -> Any:
        heartbeat.open()
        return listing(storage, **options)

    monkeypatch.setattr(sweeping, "Survey", begin)
    with pytest.raises(InputError, match=f"in use by run {heartbeat.id[:8]}"):
        collect_garbage(done.store)
    heartbeat.close("done")
    assert all(done.artifact(key).exists() for key in done.of("craft"))
    assert sorted(run.state for run in runs(done.store.storage)) == ["done", "done", "stopped"]


def test_an_import_that_was_killed_leaves_no_heartbeat_for_long(done: Done) -> None:
    dead = entry(state="running", upkeep="import")
    done.store.storage.write(f"runs/{dead['id']}.json", json.dumps(dead).encode())
    collect_garbage(done.store)
    assert dead["id"] not in {run.id for run in runs(done.store.storage)}


def test_two_sweeps_do_not_meet(done: Done) -> None:
    heartbeat = Heartbeat(done.store.storage, "store gc", {"upkeep": "gc"})
    heartbeat.open()
    with pytest.raises(InputError, match=r"in use by run .* \(store gc\)"):
        collect_garbage(done.store)
    heartbeat.close("done")


# Export and import


def names_in(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return tar.getnames()


def test_what_is_exported_and_imported_gives_the_same_report(done: Done, tmp_path: Path, capsys: Capture) -> None:
    new, file = tmp_path / "new", tmp_path / "to" / "board.tar.gz"
    table = (done.out / "results.csv").read_bytes()
    capsys.readouterr()
    assert command("export", file, "--store", done.root) == 0
    size = decimal(file.stat().st_size)
    assert capsys.readouterr().out == f"{file}: 16 records, 12 artifacts, {size}\n"
    assert command("import", file, "--store", new) == 0
    assert capsys.readouterr().out == "16 records and 12 artifacts added, 0 records known, 0 conflicts\n"
    assert command("verify", "--store", new) == 0
    assert {name: raw for name, raw in files(done.root).items() if files(new).get(name) != raw}.keys() == {
        str(done.artifact(key).relative_to(done.root)) for key in done.of("craft")
    } | {name for name in files(done.root) if name.startswith("runs/")}
    for name in ("results.csv", "leaderboard.md", "retention.csv"):
        (done.out / name).unlink()
    capsys.readouterr()
    assert main(["report", str(done.out), "--store", str(new)]) == 0
    assert (done.out / "results.csv").read_bytes() == table
    assert main(["run", "--spec", str(done.out / "spec.toml"), "--store", str(new), "--out", str(done.out)]) == 0
    assert "nothing to do: all 16 tasks" in capsys.readouterr().out


def test_the_same_content_gives_the_same_bytes(done: Done, tmp_path: Path) -> None:
    for suffix in ("tar", "tar.gz"):
        first, second = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
        export(done.store, first)
        copy = Store(str(tmp_path / suffix))
        import_(copy, first)
        export(copy, second)
        assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == sorted(member.name for member in members)
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
    assert gzip.decompress(first.read_bytes()) == (tmp_path / "a.tar").read_bytes()


def test_export_carries_what_was_asked_for(done: Done, tmp_path: Path) -> None:
    def packed(*options: str) -> dict[str, int]:
        file = tmp_path / "some.tar"
        assert command("export", file, "--store", done.root, "--force", *options) == 0
        stems = [Path(name).stem for name in names_in(file) if name.startswith("artifacts")]
        return {kind: len(set(stems) & set(done.of(kind))) for kind in COUNTS}

    assert packed() == {**COUNTS, "craft": 0}
    assert packed("--no-models") == {**COUNTS, "craft": 0, "train": 0}
    assert packed("--examples") == COUNTS
    assert packed("--examples", "--no-models") == {**COUNTS, "train": 0}
    wanted = done.of("evaluate")[:2]
    assert (result := export(done.store, tmp_path / "two.tar", [*wanted, OTHER])).records == 2
    assert (result.artifacts, result.absent) == (2, 1)


def test_export_of_a_run_packs_what_its_spec_needs(done: Done, tmp_path: Path, capsys: Capture) -> None:
    put(done.store, KEY)
    assert command("export", tmp_path / "all.tar", "--store", done.root) == 0
    assert command("export", tmp_path / "run.tar", "--store", done.root, "--run", done.out) == 0
    assert set(names_in(tmp_path / "all.tar")) - set(names_in(tmp_path / "run.tar")) == {
        f"records/{KEY[:2]}/{KEY}.json",
        f"artifacts/{KEY[:2]}/{KEY}.safetensors",
    }
    done.record(done.of("evaluate")[0]).unlink()
    spec = (done.out / "spec.toml").read_text()  # a run whose data are gone
    (done.out / "spec.toml").write_text(spec.replace('dataset = "digits"', 'dataset = "digits:gone"'))
    assert command("export", tmp_path / "gone.tgz", "--store", done.root, "--run", done.out) == 0
    assert (tmp_path / "gone.tgz").read_bytes()[:2] == b"\x1f\x8b"
    (done.out / "spec.toml").write_text(spec)
    capsys.readouterr()
    assert command("export", tmp_path / "part.tar", "--store", done.root, "--run", done.out) == 0
    assert capsys.readouterr().err == "warning: 1 of the run's 16 tasks have no record yet\n"
    assert command("export", tmp_path / "none.tar", "--store", done.root, "--run", tmp_path) == 2
    assert "spec.toml" in capsys.readouterr().err
    assert not (tmp_path / "none.tar").exists()


def test_damage_is_left_out_with_a_warning(done: Done, tmp_path: Path) -> None:
    broken, spoilt, gone = done.of("evaluate")[:3]
    done.record(broken).write_bytes(b"{")
    done.artifact(spoilt).write_bytes(b"")
    done.artifact(gone).unlink()
    before = files(done.root)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        packed = export(done.store, tmp_path / "a.tar")
    assert sorted(str(each.message).replace(done.store.url, "S") for each in caught) == sorted(
        [
            f"record {broken[:12]} in S is damaged or unknown; it counts as absent",
            f"artifact {spoilt[:12]} in S is left out: it does not match the SHA-256 in its record",
            f"artifact {gone[:12]} in S is left out: it is missing",
        ]
    )
    assert (packed.records, packed.artifacts) == (15, 9)
    assert files(done.root) == before
    assert import_(Store(str(tmp_path / "new")), tmp_path / "a.tar").records == 15


def test_a_file_that_is_there_is_replaced_only_by_force(done: Done, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "a.tar"
    file.write_bytes(b"mine")
    assert command("export", file, "--store", done.root) == 2
    assert capsys.readouterr().err == f"error: file {file} already exists; choose another, or replace it with --force\n"
    assert file.read_bytes() == b"mine"
    assert command("export", file, "--store", done.root, "--force") == 0
    assert len(names_in(file)) == 28
    (tmp_path / "folder.tar").mkdir()
    assert command("export", tmp_path / "folder.tar", "--store", done.root, "--force") == 2
    assert command("export", tmp_path / "a.zip", "--store", done.root) == 2
    assert "a name that ends in .tar, .tar.gz or .tgz" in capsys.readouterr().err
    assert command("export", tmp_path / ("a" * 300 + ".tar"), "--store", done.root) == 2
    assert re.fullmatch(r"error: cannot write [^\n]*: File name too long; [^\n]*\n", capsys.readouterr().err)


def test_an_export_that_fails_leaves_what_was_there(done: Done, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "to").mkdir()
    file = tmp_path / "to" / "a.tar"
    file.write_bytes(b"mine")
    code = f"""
import resource, signal, sys
from advbench.cli.app import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.exit(main(["store", "export", {str(file)!r}, "--force", "--store", {str(done.root)!r}]))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert re.fullmatch(r"error: cannot write [^\n]*a\.tar: File too large; [^\n]*\n", ended.stderr)
    assert files(tmp_path / "to") == {"a.tar": b"mine"}
    assert command("export", file / "below.tar", "--store", done.root) == 2
    assert re.fullmatch(r"error: cannot write [^\n]*below\.tar: [^\n]*\n", capsys.readouterr().err)


def test_importing_twice_adds_nothing_and_mends_what_is_gone(done: Done, tmp_path: Path) -> None:
    export(done.store, tmp_path / "a.tar", examples=True)
    trained, judged, crafted, other = (
        done.of("train")[0],
        done.of("evaluate")[0],
        done.of("craft")[0],
        done.of("train")[1],
    )
    before = files(done.root)
    again = import_(done.store, tmp_path / "a.tar")
    assert (again.records, again.artifacts, again.known, again.conflicts) == (0, 0, 16, ())
    assert files(done.root) == before
    done.artifact(trained).unlink()
    done.artifact(crafted).unlink()
    done.record(judged).write_bytes(b"{")
    done.artifact(other).write_bytes(b"{")
    with pytest.warns(StoreWarning, match="damaged or unknown"):
        mended = import_(done.store, tmp_path / "a.tar")
    assert (mended.records, mended.artifacts, mended.known) == (1, 4, 15)
    assert files(done.root) == before


def test_circumstances_make_no_conflict_but_results_do(tmp_path: Path, capsys: Capture) -> None:
    one, two = Store(str(tmp_path / "one")), Store(str(tmp_path / "two"))
    result = {"accuracy": 0.5, "attack": {"seconds": 1.0, "forward_passes": 2.0}}
    put(one, KEY, result=result, ran={"host": "a"}, memory={"peak": 1}, versions={"torch": "1"})
    slower = {**result, "attack": {"seconds": 9.0, "forward_passes": 2.0}}
    put(two, KEY, result=slower, seconds=7.0, ran={"host": "b"}, memory={}, versions={"torch": "2"})
    put(one, OTHER, result={"accuracy": 0.25})
    put(two, OTHER)
    kept = files(tmp_path / "two")
    assert command("export", tmp_path / "one.tar", "--store", tmp_path / "one") == 0
    capsys.readouterr()
    assert command("import", tmp_path / "one.tar", "--store", tmp_path / "two") == 1
    out, err = capsys.readouterr()
    assert out == "0 records and 0 artifacts added, 1 records known, 1 conflicts\n"
    assert err == f"conflict: record {OTHER} differs from that of the store, which is kept\n"
    assert files(tmp_path / "two") == kept


def member(name: str, raw: bytes = b"", **changes: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(raw)
    for attribute, value in changes.items():
        setattr(info, attribute, value)
    return info, raw


def record(key: str = KEY, tensors: bytes | None = TENSORS, **changes: Any) -> tuple[tarfile.TarInfo, bytes]:
    digest = None if tensors is None else hashlib.sha256(tensors).hexdigest()
    body = {"kind": "train", "key": key, "schema": FORMAT, "artifact": digest, **changes}
    return member(f"records/{key[:2]}/{key}.json", json.dumps({**body, "sha256": content_key(body)}).encode())


def artifact(key: str = KEY, raw: bytes = TENSORS, **changes: Any) -> tuple[tarfile.TarInfo, bytes]:
    return member(f"artifacts/{key[:2]}/{key}.safetensors", raw, **changes)


def write_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes], kind: int = tarfile.GNU_FORMAT) -> None:
    with tarfile.open(path, "w", format=kind) as tar:
        for info, raw in members:
            tar.addfile(info, io.BytesIO(raw))


def test_a_tar_in_any_order_is_taken(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", record(), artifact(), record(OTHER, None))
    assert import_(Store(str(tmp_path / "store")), tmp_path / "a.tar").records == 2
    assert problems(Store(str(tmp_path / "store"))) == {}


LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
HOSTILE: dict[str, list[tuple[tarfile.TarInfo, bytes]]] = {
    "absolute": [member("/etc/passwd", b"x")],
    "absolute in the layout": [member(f"/records/{KEY[:2]}/{KEY}.json", record()[1])],
    "upwards": [member("records/../../evil.json", b"x")],
    "upwards in the key": [member(f"records/../{KEY}.json", record()[1])],
    "dot": [member(f"./records/{KEY[:2]}/{KEY}.json", record()[1])],
    "other folder": [member("runs/" + "0" * 32 + ".json", b"{}")],
    "partial": [member(f"partial/{KEY}.safetensors", b"x")],
    "temporary": [member("records/ab/.x.tmp", b"x")],
    "no folder": [member("evil.py", b"x")],
    "wrong folder": [member(f"records/00/{KEY}.json", record()[1])],
    "newline": [member(f"records/{KEY[:2]}/{KEY}.json\n", b"x")],
    "escapes": [member("\x1b[2Jrecords", b"x")],
    "symlink": [artifact(**LINK), record()],
    "hard link": [artifact(**{**LINK, "type": tarfile.LNKTYPE}), record()],
    "device": [artifact(type=tarfile.CHRTYPE), record()],
    "pipe": [artifact(type=tarfile.FIFOTYPE), record()],
    "folder": [artifact(type=tarfile.DIRTYPE), record()],
    "folder of the layout": [member("records", type=tarfile.DIRTYPE), record(tensors=None)],
    "sparse": [artifact(type=tarfile.GNUTYPE_SPARSE), record()],
    "long name": [member("records/" + "a" * 200, b"x")],
    "twice": [record(tensors=None), record(tensors=None)],
    "artifact alone": [artifact()],
    "artifact of another record": [record(OTHER), artifact()],
    "artifact that its record does not name": [artifact(), record(tensors=None)],
    "artifact of other bytes": [artifact(raw=TENSORS[:-1] + b"x"), record()],
    "no tensors": [artifact(raw=b"x" * 50), record(tensors=b"x" * 50)],
    "record of another key": [member(f"records/{KEY[:2]}/{KEY}.json", record(OTHER, None)[1])],
    "record that was edited": [member(f"records/{KEY[:2]}/{KEY}.json", record()[1].replace(b"train", b"craft"))],
    "record too deep": [member(f"records/{KEY[:2]}/{KEY}.json", b"[" * 100_000)],
    "record of another schema": [record(tensors=None, schema=FORMAT + 1)],
    "empty record": [member(f"records/{KEY[:2]}/{KEY}.json")],
    "good ones and a bad one": [artifact(), record(), record(OTHER, None), member("evil", b"x")],
    "nothing": [],
}


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_hostile_tar_is_refused_in_one_line_and_nothing_is_written(
    members: list[tuple[tarfile.TarInfo, bytes]], zipped: bool, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "a.tar"
    write_tar(file, *members)
    if zipped:
        file.write_bytes(gzip.compress(file.read_bytes()))
    before = files(tmp_path)
    assert command("import", file, "--store", tmp_path / "store") == 2
    out, err = capsys.readouterr()
    assert re.fullmatch(r"error: file [^\n]*: expected a tar file from 'advbench store export', got [^\n]+\n", err)
    assert err[:-1].isprintable()
    assert out == ""
    assert files(tmp_path) == before


def test_headers_that_rename_what_follows_are_refused(tmp_path: Path) -> None:
    info, raw = record(tensors=None)
    info.pax_headers = {"path": "../../evil"}
    write_tar(tmp_path / "a.tar", (info, raw), kind=tarfile.PAX_FORMAT)
    with pytest.raises(InputError, match="which does not belong there"):
        import_(Store(str(tmp_path / "store")), tmp_path / "a.tar")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "raw", [b"", b"x", b"no tar at all" * 100, b"\x1f\x8b", b"\x1f\x8b" + b"x" * 600, b"PK\3\4" * 200]
)
def test_a_file_that_is_no_tar_is_refused(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(raw)
    with pytest.raises(InputError, match=r"^file [^\n]*: expected a tar [^\n]*$"):
        import_(Store(str(tmp_path / "store")), tmp_path / "a.tar")


def test_an_absent_file_is_one_line(tmp_path: Path, capsys: Capture) -> None:
    for path in (tmp_path / "absent.tar", tmp_path):
        assert command("import", path, "--store", tmp_path / "store") == 2
        assert re.fullmatch(r"error: file [^\n]*got (No such file|Is a directory)[^\n]*\n", capsys.readouterr().err)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_truncated_tar_is_refused(zipped: bool, tmp_path: Path) -> None:
    file, store = tmp_path / "a.tar", Store(str(tmp_path / "store"))
    write_tar(file, artifact(), record(), artifact(OTHER), record(OTHER))
    end = file.read_bytes().rstrip(b"\0")
    whole = gzip.compress(end + bytes(1024)) if zipped else end + bytes(1024)
    last = len(whole) - (20 if zipped else 1024)
    for length in [*range(0, last, 97 if zipped else 211), *([] if zipped else range(0, last, tarfile.BLOCKSIZE))]:
        file.write_bytes(whole[:length])
        with pytest.raises(InputError):
            import_(store, file)
    assert not (tmp_path / "store").exists()
    file.write_bytes(whole)
    assert import_(store, file).records == 2


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_a_tar_with_changed_bytes_is_refused_or_says_the_same(data: st.DataObject) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for info, raw in (artifact(), record()):
            tar.addfile(info, io.BytesIO(raw))
    raw = bytearray(buffer.getvalue()[:4096])
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    store, told = Store(f"memory://{uuid.uuid4().hex}"), ""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(raw)
        try:
            import_(store, Path(file.name))
        except InputError as error:
            told = str(error)
    assert "\n" not in told
    assert bool(told) == (store.storage.names("") == [])
    assert problems(store) == {}


def test_a_member_larger_than_the_file_can_hold_is_refused_at_its_header(tmp_path: Path) -> None:
    info, _ = artifact()
    info.size = 2**40
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"x" * 2000)
    with pytest.raises(InputError, match=r"with 1099511627776 bytes, too large"):
        import_(Store(str(tmp_path / "store")), tmp_path / "a.tar")
    info.size = -1
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"x" * 2000)
    with pytest.raises(InputError, match=r"with -1 bytes"):
        import_(Store(str(tmp_path / "store")), tmp_path / "a.tar")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    bomb = safetensors.numpy.save({"a": np.zeros(2**24, dtype=np.uint8)})
    write_tar(tmp_path / "a.tar", artifact(raw=bomb), record(tensors=bomb))
    import_(Store(str(tmp_path / "plain")), tmp_path / "a.tar")
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes(), 9))
    with pytest.raises(InputError, match="too large"):
        import_(Store(str(tmp_path / "store")), tmp_path / "a.tar.gz")
    large = member(f"records/{KEY[:2]}/{KEY}.json", b" " * (2**26 + 1))
    write_tar(tmp_path / "a.tar", large)
    with pytest.raises(InputError, match="too large"):
        import_(Store(str(tmp_path / "store")), tmp_path / "a.tar")


def test_an_import_that_cannot_be_unpacked_is_one_line(done: Done, tmp_path: Path) -> None:
    export(done.store, tmp_path / "a.tar")
    code = f"""
import resource, signal, sys
from advbench.cli.app import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
sys.exit(main(["store", "import", {str(tmp_path / "a.tar")!r}, "--store", {str(tmp_path / "new")!r}]))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert re.fullmatch(r"error: cannot write [^\n]*advbench-import-[^\n]*: File too large; [^\n]*\n", ended.stderr)
    assert not (tmp_path / "new").exists()


def test_gc_waits_for_an_import(done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose artifacts come before their records."""
    export(done.store, tmp_path / "a.tar")
    store, refused = Store(str(tmp_path / "new")), []
    write = type(store.storage).write

    def watched(self: Any, name: str, raw: bytes) -> None:
        if name == f"records/{done.of('train')[0][:2]}/{done.of('train')[0]}.json":
            with pytest.raises(InputError, match=r"in use by run .* \(store import\)"):
                collect_garbage(store)
            refused.append(name)
        write(self, name, raw)

    monkeypatch.setattr(type(store.storage), "write", watched)
    assert import_(store, tmp_path / "a.tar").records == 16
    assert len(refused) == 1
    assert list(runs(store.storage)) == []


def test_a_file_that_changes_meanwhile_adds_nothing_unchecked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, store = tmp_path / "a.tar", Store(str(tmp_path / "store"))
    write_tar(file, artifact(), record())
    check = Store.check_writable

    def exchange(self: Store) -> None:
        check(self)
        write_tar(file, artifact(raw=safetensors.numpy.save({"b": np.ones(6, dtype=np.float32)})), record())

    monkeypatch.setattr(Store, "check_writable", exchange)
    import_(store, file)
    assert store.read_artifact(KEY) == TENSORS
    assert problems(store) == {}


def test_a_store_that_cannot_be_written_is_one_line(done: Done, tmp_path: Path, capsys: Capture) -> None:
    export(done.store, tmp_path / "a.tar")
    (tmp_path / "file").write_text("in the way")
    assert command("import", tmp_path / "a.tar", "--store", tmp_path / "file") == 2
    assert re.fullmatch(r"error: store [^\n]*writable[^\n]*\n", capsys.readouterr().err)


# Pickles


def test_planted_pickles_are_never_unpickled(done: Done, tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    raw = pickle.dumps(Harmful(str(harm)))
    store, keys = done.store, done.of("evaluate")
    places = [
        f"records/{keys[0][:2]}/{keys[0]}.json",
        f"artifacts/{keys[1][:2]}/{keys[1]}.safetensors",
        f"partial/{KEY}.safetensors",
        f"failures/{KEY[:2]}/{KEY}.json",
        f"leases/{KEY[:2]}/{KEY}.0.json",
        f"runs/{uuid.uuid4().hex}.json",
        f"records/{KEY[:2]}/.{KEY}.json.tmp",
        "weights.pkl",
    ]
    for name in places:
        store.storage.write(name, raw)
    put(store, OTHER, raw)  # a record vouches for this one
    store.write_partial(OTHER, raw)
    found = problems(store)
    assert set(places[:6]) <= {name for name, problem in found.items() if problem == "damaged"}
    assert found[f"artifacts/{OTHER[:2]}/{OTHER}.safetensors"] == "damaged"
    with pytest.warns(StoreWarning):
        export(store, tmp_path / "a.tar", examples=True)
    assert raw not in (tmp_path / "a.tar").read_bytes()
    for members in ([artifact(raw=raw), record(tensors=raw)], [member(f"records/{KEY[:2]}/{KEY}.json", raw)]):
        write_tar(tmp_path / "b.tar", *members)
        with pytest.raises(InputError):
            import_(store, tmp_path / "b.tar")
    (tmp_path / "b.tar").write_bytes(raw)
    with pytest.raises(InputError):
        import_(store, tmp_path / "b.tar")
    collect_garbage(store)
    assert set(places) & files(done.root).keys() == {"weights.pkl"}
    assert not harm.exists()


# How it is told


def test_measurements_survive_the_sweep_of_a_real_run(done: Done) -> None:
    before = measured(done.store.storage)
    collect_garbage(done.store)
    for path in (done.root / "runs").iterdir():
        if "upkeep" not in json.loads(path.read_bytes()):
            path.unlink()
    assert measured(done.store.storage) == before != {}


def test_a_finding_is_one_line() -> None:
    assert str(Found("records", "records/a", problem="damaged", detail="why")) == "damaged: records/a: why"
    assert str(Found("records", "records/a")) == "ok: records/a"
    assert str(Found("unknown", "a\udcff\n", problem="unknown")) == r"unknown: a\udcff\n"


def test_many_are_worked_on_in_order_and_an_error_ends_it() -> None:
    assert list(in_parallel(lambda value: value * value, range(100))) == [value * value for value in range(100)]
    assert list(in_parallel(str, [])) == []
    with pytest.raises(ZeroDivisionError):
        list(in_parallel(lambda value: 1 / value, [1, 0, 2]))


@pytest.mark.parametrize("name", ["verify", "gc", "export", "import"])
def test_every_command_explains_itself(name: str, capsys: Capture) -> None:
    assert main(["store", name, "--help"]) == 0
    assert "--store" in capsys.readouterr().out
