from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest
from helpers import Harmful
from hypothesis import given, settings
from hypothesis import strategies as st

from advbench.errors import MissingExtraError, StoreError
from advbench.keys import canonical, content_key
from advbench.store.heartbeat import Heartbeat, Liveness
from advbench.store.leases import Leases
from advbench.store.records import FORMAT, Store
from advbench.store.storage import StoreWarning, write_file

KEY, OTHER = content_key("a task"), content_key("another task")
RECORD = {"kind": "evaluate", "accuracy": 0.8125, "seeds": [0, 1], "note": "adv_bnn größer 東京", "reason": None}
BYTES = bytes(range(256)) * 3

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(params=["folder", "file_url", "memory"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    urls = {
        "folder": str(tmp_path / "store"),
        "file_url": f"file://{tmp_path}/store",
        "memory": f"memory://{uuid.uuid4().hex}/store",
    }
    return Store(urls[request.param])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


# Round trips


def test_record_comes_back_with_its_key_and_schema(any_store: Store) -> None:
    assert any_store.read_record(KEY) is None
    any_store.write_record(KEY, RECORD)
    assert any_store.read_record(KEY) == {**RECORD, "key": KEY, "schema": FORMAT}
    assert any_store.read_record(OTHER) is None


def test_record_is_replaced_by_a_later_one(any_store: Store) -> None:
    any_store.write_record(KEY, RECORD)
    any_store.write_record(KEY, {"accuracy": 0.5})
    assert any_store.read_record(KEY) == {"accuracy": 0.5, "key": KEY, "schema": FORMAT}


def test_artifact_comes_back_once_its_record_vouches_for_it(any_store: Store) -> None:
    digest = any_store.write_artifact(KEY, BYTES)
    assert digest == hashlib.sha256(BYTES).hexdigest()
    assert any_store.read_artifact(KEY) is None
    any_store.write_record(KEY, {"artifact": digest})
    assert any_store.read_artifact(KEY) == BYTES


def test_done_asks_for_the_record_and_if_wanted_for_the_artifact(any_store: Store) -> None:
    def done() -> list[bool]:
        return [any_store.is_done(KEY, with_artifact=flag) for flag in (False, True)]

    assert done() == [False, False]
    digest = any_store.write_artifact(KEY, BYTES)
    assert done() == [False, False]
    any_store.write_record(KEY, {"artifact": digest})
    assert done() == [True, True]
    any_store.drop_artifact(KEY)
    assert done() == [True, False]


@pytest.mark.parametrize("body", [b"", b"x", BYTES * 1_000])
def test_partial_state_comes_back_until_it_is_dropped(any_store: Store, body: bytes) -> None:
    assert any_store.read_partial(KEY) is None
    any_store.write_partial(KEY, b"older")
    any_store.write_partial(KEY, body)
    assert any_store.read_partial(KEY) == body
    any_store.drop_partial(KEY)
    assert any_store.read_partial(KEY) is None


def test_dropping_what_is_absent_leaves_the_rest(any_store: Store) -> None:
    any_store.write_record(KEY, RECORD)
    any_store.drop_artifact(KEY)
    any_store.drop_partial(KEY)
    assert any_store.read_record(KEY) is not None


def test_layout_is_the_documented_one(store: Store, tmp_path: Path) -> None:
    fill(store)
    found = {str(path.relative_to(tmp_path / "store")) for path in files(tmp_path)}
    assert found == {
        f"records/{KEY[:2]}/{KEY}.json",
        f"artifacts/{KEY[:2]}/{KEY}.safetensors",
        f"partial/{KEY}.safetensors",
    }


def test_two_stores_at_one_url_see_the_same(any_store: Store) -> None:
    any_store.write_record(KEY, RECORD)
    assert Store(any_store.url).read_record(KEY) == any_store.read_record(KEY)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_any_json_record_comes_back(record: dict[str, Any]) -> None:
    store = Store(f"memory://{uuid.uuid4().hex}")
    record.pop("sha256", None)
    store.write_record(KEY, record)
    assert store.read_record(KEY) == {**record, "key": KEY, "schema": FORMAT}


# Canonical JSON


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.text(), JSON, max_size=6), st.randoms())
def test_order_of_keys_does_not_matter(value: dict[str, Any], random: Random) -> None:
    items = list(value.items())
    random.shuffle(items)
    nested, shuffled = {"outer": [value]}, {"outer": [dict(items)]}
    assert canonical(shuffled) == canonical(nested)
    assert content_key(shuffled) == content_key(nested)
    assert json.loads(canonical(nested)) == nested


@settings(deadline=None, max_examples=100)
@given(JSON, JSON)
def test_different_values_have_different_keys(one: object, other: object) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (content_key(one) == content_key(other)) == same


def test_canonical_form_is_sorted_compact_utf8() -> None:
    value = {"b": [1, 2.5, None], "a": {"ü": True}}
    assert canonical(value) == '{"a":{"ü":true},"b":[1,2.5,null]}'.encode()
    assert content_key({}) == hashlib.sha256(b"{}").hexdigest()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_lacks_have_no_canonical_form(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"x": value})


# Damage


def test_truncated_record_counts_as_absent(store: Store, tmp_path: Path) -> None:
    path = fill(store).record
    whole = path.read_bytes()
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        with pytest.warns(StoreWarning, match=f"record {KEY[:12]} .*damaged or unknown; it counts as absent"):
            assert store.read_record(KEY) is None
    path.write_bytes(whole)
    assert store.read_record(KEY) is not None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"3",
        b'"text"',
        b"[]",
        b"{}",
        b'{"accuracy": 1}',
        b'{"sha256": 1}',
        b'[{"key": "x"}]',
        b"\xff\xfe\x00",
        b"\x00" * 200,
        b"not json",
        b'{"sha256": "x", "key": NaN}',
        b"[" * 100_000,
        b'{"x": ' + b"1" * 10_000 + b"}",
    ],
    ids=lambda raw: repr(raw[:12]),
)
def test_foreign_content_of_a_record_counts_as_absent(store: Store, raw: bytes) -> None:
    fill(store).record.write_bytes(raw)
    with pytest.warns(StoreWarning, match="record"):
        assert store.read_record(KEY) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"0.8125", b"0.9125"),
        (b'"evaluate"', b'"evaluatf"'),
        (b'"schema":%d' % FORMAT, b'"schema":%d' % (FORMAT + 1)),
        (b"null", b"true"),
        (b'"accuracy"', b'"accuracz"'),
    ],
)
def test_edited_record_counts_as_absent(store: Store, old: bytes, new: bytes) -> None:
    path = fill(store).record
    raw = path.read_bytes()
    assert raw.count(old) == 1
    path.write_bytes(raw.replace(old, new))
    with pytest.warns(StoreWarning, match="record"):
        assert store.read_record(KEY) is None


def test_record_with_any_bit_flipped_counts_as_absent_or_says_the_same(store: Store) -> None:
    path = fill(store).record
    raw, sound = path.read_bytes(), store.read_record(KEY)
    for position in range(0, len(raw), 2):
        flipped = bytearray(raw)
        flipped[position] ^= 1 << position % 7
        path.write_bytes(flipped)
        if flipped[position : position + 1].isspace() and raw[position : position + 1].isspace():
            assert store.read_record(KEY) == sound
        else:
            with pytest.warns(StoreWarning, match="record"):
                assert store.read_record(KEY) is None


def test_record_of_another_schema_counts_as_absent(store: Store) -> None:
    path = fill(store).record
    body = {**RECORD, "key": KEY, "schema": FORMAT + 1}
    path.write_bytes(canonical({**body, "sha256": content_key(body)}))
    with pytest.warns(StoreWarning, match="record"):
        assert store.read_record(KEY) is None


def test_record_of_another_key_copied_over_counts_as_absent(store: Store) -> None:
    path = fill(store).record
    store.write_record(OTHER, RECORD)
    path.write_bytes(Path(str(path).replace(f"{KEY[:2]}/{KEY}", f"{OTHER[:2]}/{OTHER}")).read_bytes())
    for with_artifact in (False, True):
        with pytest.warns(StoreWarning, match="record"):
            assert not store.is_done(KEY, with_artifact=with_artifact)
    assert store.read_record(OTHER) is not None


def test_damaged_record_is_mended_by_writing_it_again(store: Store) -> None:
    fill(store).record.write_bytes(b"{")
    store.write_record(KEY, RECORD)
    assert store.read_record(KEY) == {**RECORD, "key": KEY, "schema": FORMAT}


@pytest.mark.parametrize("raw", [b"", BYTES[:-1], BYTES + b"\0", b"\0" * len(BYTES)])
def test_artifact_of_wrong_bytes_counts_as_absent_and_goes(store: Store, raw: bytes) -> None:
    paths = fill(store)
    paths.artifact.write_bytes(raw)
    with pytest.warns(StoreWarning, match=f"artifact {KEY[:12]} .*damaged or unknown; it counts as absent"):
        assert store.read_artifact(KEY) is None
    assert not paths.artifact.exists()
    assert store.read_record(KEY) is not None
    store.write_artifact(KEY, BYTES)
    assert store.read_artifact(KEY) == BYTES


def test_artifact_without_a_trusted_record_counts_as_absent(store: Store) -> None:
    fill(store).record.write_bytes(b"{}")
    with pytest.warns(StoreWarning, match="record"):
        assert store.read_artifact(KEY) is None


def test_truncated_partial_state_counts_as_absent(store: Store) -> None:
    path = fill(store).partial
    whole = path.read_bytes()
    for length in range(0, len(whole), 31):
        path.write_bytes(whole[:length])
        with pytest.warns(StoreWarning, match=f"partial state {KEY[:12]} .*damaged or unknown; it counts as absent"):
            assert store.read_partial(KEY) is None


@pytest.mark.parametrize("position", [0, 63, 64, -1])
def test_partial_state_with_a_changed_byte_counts_as_absent(store: Store, position: int) -> None:
    path = fill(store).partial
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)
    with pytest.warns(StoreWarning, match="partial state"):
        assert store.read_partial(KEY) is None


# Pickles


@pytest.mark.parametrize("place", ["record", "artifact", "partial"])
@pytest.mark.parametrize("protocol", [0, pickle.HIGHEST_PROTOCOL])
def test_planted_pickle_is_never_unpickled(store: Store, tmp_path: Path, place: str, protocol: int) -> None:
    harm = tmp_path / "harm"
    planted = pickle.dumps(Harmful(str(harm)), protocol)
    paths = fill(store)
    getattr(paths, place).write_bytes(planted)
    read = {"record": store.read_record, "artifact": store.read_artifact, "partial": store.read_partial}[place]
    with pytest.warns(StoreWarning, match=place):
        assert read(KEY) is None
    assert not harm.exists()
    pickle.loads(planted).close()
    assert harm.exists()


def test_pickle_that_a_record_vouches_for_stays_bytes(store: Store, tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    planted = pickle.dumps(Harmful(str(harm)))
    store.write_record(KEY, {"artifact": store.write_artifact(KEY, planted)})
    store.write_partial(KEY, planted)
    assert store.read_artifact(KEY) == store.read_partial(KEY) == planted
    assert not harm.exists()


# Atomicity


def test_writes_leave_no_temporary_file(store: Store, tmp_path: Path) -> None:
    fill(store)
    fill(store)
    assert len(files(tmp_path)) == 3


def test_write_that_cannot_be_renamed_leaves_no_temporary_file(store: Store, tmp_path: Path) -> None:
    blocked = tmp_path / "store" / "records" / KEY[:2] / f"{KEY}.json"
    (blocked / "occupied").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"^cannot write [^\n]*; free space or repair the store[^\n]*$"):
        store.write_record(KEY, RECORD)
    assert files(tmp_path) == []


def test_write_that_runs_out_of_space_leaves_the_old_file(store: Store, tmp_path: Path) -> None:
    fill(store)
    before = {path: path.read_bytes() for path in files(tmp_path)}
    code = f"""
import resource, signal
from advbench.errors import MissingExtraError, StoreError
from advbench.store.records import Store
store = Store({store.url!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write in (
    lambda: store.write_artifact({KEY!r}, b"x" * 100_000),
    lambda: store.write_partial({KEY!r}, b"x" * 100_000),
    lambda: store.write_record({KEY!r}, {{"text": "x" * 100_000}}),
):
    try:
        write()
    except StoreError as error:
        print(error)
"""
    lines = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("cannot write ") and "File too large" in line for line in lines)
    assert {path: path.read_bytes() for path in files(tmp_path)} == before


def test_killed_writer_leaves_a_whole_state(store: Store) -> None:
    states = [bytes([value]) * 2_000_000 for value in b"ab"]
    store.write_partial(KEY, states[0])
    code = f"""
from advbench.store.records import Store
store = Store({store.url!r})
print("ready", flush=True)
while True:
    for value in b"ab":
        store.write_partial({KEY!r}, bytes([value]) * 2_000_000)
"""
    seen = set()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        until = time.monotonic() + 0.7
        while time.monotonic() < until:
            seen.add(store.read_partial(KEY))
        writer.send_signal(signal.SIGKILL)
    seen.add(store.read_partial(KEY))
    assert seen <= set(states)


def test_file_for_the_user_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.csv"
    write_file(path, b"first")
    write_file(path, b"second")
    assert path.read_bytes() == b"second"
    with pytest.raises(StoreError, match=r"^cannot write [^\n]*; choose another folder with --out$"):
        write_file(path / "below" / "a.csv", b"third")
    assert files(tmp_path) == [path]


# What cannot be used


@pytest.mark.parametrize("url", ["nope://bucket", "nope://a/b?c=1", "memory://x::nope://y"])
def test_unknown_protocol_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(
        StoreError, match=r"^store [^\n]*expected a writable folder or fsspec URL[^\n]*with --store$"
    ) as caught:
        Store(url)
    assert "nope" in str(caught.value)


def test_a_store_whose_library_is_missing_says_which_extra_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)  # type: ignore[attr-defined]
    with pytest.raises(MissingExtraError, match=r"^store 's3://b/x' needs s3fs, .*; pip install 'advbench\[s3\]'$"):
        Store("s3://b/x")


@pytest.mark.parametrize("url", ["github://a/b", "reference://"])
def test_whatever_a_file_system_raises_is_one_line(url: str) -> None:
    with pytest.raises(StoreError, match=r"^store [^\n]*with --store$"):
        Store(url)


def test_usable_store_is_writable_and_the_probe_goes(any_store: Store, tmp_path: Path) -> None:
    any_store.check_writable()
    assert files(tmp_path) == []
    assert any_store.read_partial("0" * 64) is None


@pytest.mark.parametrize("below", ["", "/deeper/still"])
def test_store_under_a_file_is_refused_in_one_line(tmp_path: Path, below: str) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    store = Store(f"{file}{below}")
    with pytest.raises(StoreError, match=r"^store [^\n]*writable[^\n]*choose another with --store$"):
        store.check_writable()
    assert file.read_text() == "kept"


@pytest.mark.parametrize(
    "act",
    [
        lambda store: store.write_record(KEY, RECORD),
        lambda store: store.write_artifact(KEY, BYTES),
        lambda store: store.write_partial(KEY, BYTES),
        lambda store: store.read_record(KEY),
        lambda store: store.read_partial(KEY),
        lambda store: store.drop_artifact(KEY),
        lambda store: store.drop_partial(KEY),
    ],
    ids=["write_record", "write_artifact", "write_partial", "read_record", "read_partial", "drop_artifact", "drop"],
)
def test_every_failure_of_the_disk_is_one_line(tmp_path: Path, act: Callable[[Store], object]) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(StoreError, match=r"^cannot (read|write|remove) [^\n]*; [^\n]*$"):
        act(Store(str(file)))


def test_unreadable_record_is_an_error_rather_than_absent(store: Store, tmp_path: Path) -> None:
    (tmp_path / "store" / "records" / KEY[:2] / f"{KEY}.json").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"^cannot read [^\n]*$"):
        store.read_record(KEY)


class Paths:
    """Where a store in a folder keeps what belongs to `KEY`."""

    def __init__(self, root: Path) -> None:
        self.record = root / "records" / KEY[:2] / f"{KEY}.json"
        self.artifact = root / "artifacts" / KEY[:2] / f"{KEY}.safetensors"
        self.partial = root / "partial" / f"{KEY}.safetensors"


def fill(store: Store) -> Paths:
    store.write_record(KEY, {**RECORD, "artifact": store.write_artifact(KEY, BYTES)})
    store.write_partial(KEY, BYTES)
    return Paths(Path(store.url))


def files(folder: Path) -> list[Path]:
    return sorted(Path(root) / name for root, _, names in os.walk(folder) for name in names)


def test_a_record_laid_out_otherwise_is_the_same_record(store: Store) -> None:
    """As earlier versions wrote it, and as a person's editor might leave it."""
    path, sound = fill(store).record, store.read_record(KEY)
    path.write_text(json.dumps(json.loads(path.read_bytes()), indent=1, sort_keys=True))
    assert store.read_record(KEY) == sound
    path.write_text(path.read_text().replace("0.8125", "0.9125"))
    with pytest.warns(StoreWarning, match="record"):
        assert store.read_record(KEY) is None


# Names that are taken once


def test_a_name_is_taken_once(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda n: store.storage.create("leases/ab/x.0.json", b"%d" % n), range(32)))
    assert taken.count(True) == 1
    assert store.storage.read("leases/ab/x.0.json") == b"%d" % taken.index(True)
    assert store.storage.names("leases") == ["leases/ab/x.0.json"]


def test_a_release_that_is_interrupted_is_completed_at_the_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with Heartbeat(store.storage) as heartbeat:
        leases = Leases(store.storage, heartbeat.id, Liveness(store.storage))
        assert leases.acquire(KEY)

        def interrupted(name: str) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(store.storage, "remove", interrupted)
            with pytest.raises(KeyboardInterrupt):
                leases.release(KEY)
        assert list(store.storage.names("leases"))
        leases.release_all()
        assert not list(store.storage.names("leases"))


def test_a_lease_that_is_being_written_is_not_taken_for_a_dead_drivers(store: Store) -> None:
    heartbeats = [Heartbeat(store.storage) for _ in range(2)]
    with heartbeats[0], heartbeats[1]:
        first, second = (Leases(store.storage, each.id, Liveness(store.storage)) for each in heartbeats)
        key = "ab" * 32
        store.storage.write(f"leases/ab/{key}.0.json", b"")
        whole = json.dumps({"driver": heartbeats[0].id}).encode()
        writer = threading.Timer(0.3, lambda: store.storage.write(f"leases/ab/{key}.0.json", whole))
        writer.start()
        assert not second.acquire(key)
        writer.join()
        store.storage.write(f"leases/ab/{key}.0.json", b"")
        assert second.acquire(key)  # whoever was writing it died
        assert not first.acquire(key)
