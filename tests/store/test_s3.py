"""A store on a real S3 server on loopback, and what becomes of a run when the server goes away."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

from advbench.errors import StoreError
from advbench.store.heartbeat import Heartbeat, Liveness
from advbench.store.leases import Leases
from advbench.store.records import Store
from advbench.store.storage import Storage, StoreWarning

pytest.importorskip("s3fs")
pytest.importorskip("moto")
# One after another: each of these keeps all cores busy by itself.
pytestmark = pytest.mark.xdist_group("processes")

RUN = (
    "--defense erm,adv_bnn --attack fgsm,pgd --affinity fgsm,pgd --eps 0.05,0.15 --limit 40 --draws 4 "
    "--set erm.stages=[3] "
    "--set adv_bnn.stages=[3] --set adv_bnn.steps=2 --set pgd.steps=3 --executor local --workers 2"
).split()


class Gate:
    """The way to the server, which can be closed: connections end, and new ones are refused."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._open: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self.port = free_port()
        self.open()

    def open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._open += [client, server]
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """The port of a real S3 server."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.1)
    yield port
    process.kill()
    process.wait()


@pytest.fixture
def gate(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """The way to the server, in the environment."""
    import s3fs

    way = Gate(server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{way.port}")
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("results")
    yield way
    with suppress(OSError):
        s3fs.S3FileSystem(endpoint_url=f"http://127.0.0.1:{server}").rm("results", recursive=True)
    way.close()
    s3fs.S3FileSystem.clear_instance_cache()


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "advbench", "run", *RUN, *options],
        cwd=folder,
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results(folder: Path) -> str:
    return pd.read_csv(folder / "results" / "results.csv", dtype=str).drop(columns="seconds").to_csv(index=False)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The results with a store in a folder."""
    folder = tmp_path_factory.mktemp("reference")
    process = start(folder)
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    return results(folder)


def test_records_artifacts_and_leases_live_on_s3(gate: Gate) -> None:
    store = Store("s3://results/one")
    store.check_writable()
    digest = store.write_artifact("ab" * 32, b"tensors")
    store.write_record("ab" * 32, {"artifact": digest})
    assert store.read_artifact("ab" * 32) == b"tensors"
    assert store.storage.names("records") == [f"records/ab/{'ab' * 32}.json"]
    drivers = [Heartbeat(store.storage), Heartbeat(store.storage)]
    for driver in drivers:
        driver.open()
    first, second = (Leases(store.storage, driver.id, Liveness(store.storage)) for driver in drivers)
    assert (first.acquire("cd" * 32), second.acquire("cd" * 32)) == (True, False)
    first.release("cd" * 32)
    assert second.acquire("cd" * 32)
    for driver in drivers:
        driver.close("done")


def test_of_many_who_want_a_name_one_gets_it(gate: Gate) -> None:
    storage = Storage("s3://results/race")
    won: list[int] = []

    def want(number: int) -> None:
        if storage.create("leases/x.0.json", f"driver {number}".encode()):
            won.append(number)

    threads = [threading.Thread(target=want, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read("leases/x.0.json") == f"driver {won[0]}".encode()


@pytest.mark.parametrize(("url", "reason"), [("s3://no-such-bucket/store", "bucket"), ("s3://", "")])
def test_a_bucket_that_is_not_there_is_one_line(url: str, reason: str, gate: Gate) -> None:
    with pytest.raises(StoreError, match=re.escape(url)) as told:
        Store(url).check_writable()
    assert reason in str(told.value)
    assert "\n" not in str(told.value)


def test_a_run_on_s3_gives_the_same_bytes_through_an_outage_of_10_seconds(
    gate: Gate, reference: str, tmp_path: Path
) -> None:
    process = start(tmp_path, "--store", "s3://results/run")
    records = Storage("s3://results/run")
    end = time.monotonic() + 400
    while len(records.names("records")) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
    gate.close()
    time.sleep(10)
    assert process.poll() is None, process.communicate()
    gate.open()
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert "does not respond; retrying" in err
    assert "Traceback" not in err
    assert results(tmp_path) == reference
    again = start(tmp_path, "--store", "s3://results/run")
    out, _ = again.communicate(timeout=400)
    assert "nothing to do" in out
    assert not Storage("s3://results/run").names("leases")


@pytest.mark.slow
def test_a_server_that_stays_away_is_one_line_and_nothing_is_torn(gate: Gate, reference: str, tmp_path: Path) -> None:
    process = start(tmp_path, "--store", "s3://results/away", "--store-patience", "4")
    records = Storage("s3://results/away")
    while len(records.names("records")) < 3:
        assert process.poll() is None, process.communicate()
    gate.close()
    _, err = process.communicate(timeout=400)
    assert process.returncode == 2
    last = err.strip().splitlines()[-1]
    assert re.match(r"error: cannot \w+ results/away/.* in the store: .*; check the server, then run the same", last)
    assert "Traceback" not in err
    gate.open()
    for name in records.names("records"):
        assert Store("s3://results/away").read_record(name.rpartition("/")[2].removesuffix(".json"))
    again = start(tmp_path, "--store", "s3://results/away")
    again.communicate(timeout=500)
    assert again.returncode == 0
    assert results(tmp_path) == reference


def test_patience_has_an_end(gate: Gate) -> None:
    storage = Storage("s3://results/patience", patience=1.0)
    gate.close()
    started = time.monotonic()
    with (
        pytest.warns(StoreWarning, match="does not respond"),
        pytest.raises(StoreError, match=r"cannot read results/patience/x"),
    ):
        storage.read("x")
    assert time.monotonic() - started < 60
