"""What goes wrong stays where it is: hostile plugins, kills of drivers and workers, several drivers, a full disk."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers import Harmful, install

from advbench.cli.app import main

# One after another: each of these keeps all cores busy by itself.
pytestmark = pytest.mark.xdist_group("processes")

HOSTILE = """
import os, signal, sys, time
import torch
from advbench import attacks
from advbench.attacks import Attack, Field
from advbench.registry import hookimpl

@hookimpl
def advbench_register(register):
    register.attack("hostile", "hostile:Hostile", "does what it should not")

class Hostile(Attack):
    class Params(attacks.Params):
        how: str = Field(default="", description="the misdeed")
    gradients = False

    def run(self, clf, x, goal, threat, generator):
        how = self.params.how
        if how == "hang":
            time.sleep(10_000)
        if how == "spate":
            while True:
                os.write(1, b"line\\n" * 30000)
        if how == "exit":
            sys.exit(1)
        if how == "vanish":
            os._exit(0)
        if how == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if how == "memory":
            return torch.empty(10**15).to(x)
        if how == "greedy":
            if clf.chunk is None or clf.chunk > 5:
                raise torch.OutOfMemoryError("Tried to allocate 9000 GiB")
            clf(x)
        if how == "nans":
            return x * float("nan")
        if how == "huge":
            raise ValueError("no " * 10**6)
        if how == "odd":
            class Odd(Exception):
                def __init__(self, one, two):
                    super().__init__(one)
            raise Odd("cannot be pickled\\x1b[31m\\n", 2)
        if how == "leak":
            torch.set_grad_enabled(False)
            torch.set_default_dtype(torch.float64)
            torch.set_num_threads(7)
            x.zero_()
            y.zero_()
            return x
        if how == "chatter":
            print("to python's output")
            os.write(1, b"to the descriptor\\n" * 2000)
            print("to python's error", file=sys.stderr)
        return x
"""
MISDEEDS = {
    "hang": r"exceeded the time limit of 15 s",
    "spate": r"exceeded the time limit of 15 s",
    "exit": r"SystemExit: 1",
    "vanish": r"the worker died in each of 2 tries: exit code 0",
    "segfault": r"the worker died in each of 2 tries: SIGSEGV",
    "memory": r"memory of cpu ran out with 20, 10, 5, 2, 1 images at once \(.*allocate",
    "nans": r"(?i)finite|nan",
    "huge": r"ValueError: no no no .{,400}\.\.\..{,200}$",
    "odd": r"Odd: cannot be pickled\\x1b\[31m$",
}
HARMLESS = ("greedy", "chatter", "good")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the hostile plugin is installed."""
    return install(tmp_path_factory.mktemp("site"), "hostile", HOSTILE)


def advbench(
    folder: Path, *options: str, env: dict[str, str] | None = None, **more: Any
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "advbench", *options],
        cwd=folder,
        env={**os.environ, "COLUMNS": "200", **(env or {})},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        **more,
    )


@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_hostile_plugins_fail_their_own_cells_alone_and_say_why(
    executor: str, hostile: dict[str, str], tmp_path: Path
) -> None:
    labels = [*MISDEEDS, *HARMLESS]
    attacks = ",".join(f"hostile@{how}" for how in labels)
    sets = [text for how in labels for text in ("--set", f"hostile@{how}.how={how}")]
    options = f"--defense erm --attack {attacks} --eps 0.1 --limit 20 --batch-size 20 --set erm.stages=[1]".split()
    faults = f"--executor {executor} --workers 2 --time-limit 15 --retries 1".split()
    done = advbench(tmp_path, "run", *options, *sets, *faults, env=hostile)
    assert done.returncode == 1, done.stderr
    frame = pd.read_csv(tmp_path / "results" / "results.csv", keep_default_na=False).set_index("attack")
    kept = [json.loads(path.read_text()) for path in (tmp_path / ".advbench/store/failures").rglob("*.json")]
    reasons = {failure["label"]: failure["reason"] for failure in kept}
    alike = MISDEEDS if executor == "local" else {how: MISDEEDS[how] for how in ("nans", "hang", "exit", "huge")}
    for how, reason in alike.items():
        assert re.search(reason, reasons[f"craft hostile@{how} 0.1 on erm, seed 0"]), (how, reasons)
        assert frame.loc[f"hostile@{how}", "flags"].startswith("failed: depends on a failed task")
    summary = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    if executor == "local":
        assert [line for line in summary if " on erm, seed 0 and 1 others: exceeded" in line]
    assert max(map(len, summary)) < 700
    for how in HARMLESS:
        assert frame.loc[f"hostile@{how}", "accuracy"] != ""
    assert "to the descriptor" not in done.stdout
    assert "Odd: cannot be pickled" in done.stderr
    assert "\x1b[31m" not in done.stdout
    if executor == "local":
        assert "craft hostile@chatter 0.1 on erm, seed 0 | to python's error" in done.stderr or (
            "(further output is omitted)" in done.stderr
        )
    assert f"{len(MISDEEDS) * 2} failed" in done.stdout


def test_what_failed_by_its_own_fault_is_tried_again_only_when_that_is_asked_for(
    hostile: dict[str, str], tmp_path: Path
) -> None:
    options = "--defense erm --attack hostile --eps 0.1 --limit 20 --set erm.stages=[1] --set hostile.how=huge".split()
    first = advbench(tmp_path, "run", *options, env=hostile)
    assert (first.returncode, "2 tasks run, 0 already done, 2 failed" in first.stdout) == (1, True)
    second = advbench(tmp_path, "run", *options, env=hostile)
    assert second.returncode == 1
    assert "0 tasks run, 2 already done, 2 failed" in second.stdout
    assert "1 failed in a previous run and were not retried; use --retry-failed" in second.stderr
    assert "Traceback" in first.stderr
    assert "Traceback" not in second.stderr
    assert "failed: ValueError: no no" in second.stderr
    mended = tmp_path / "site"
    mended.mkdir()
    fixed = install(mended, "hostile", HOSTILE.replace('"no " * 10**6', "1 / 0").replace('how == "huge"', "False"))
    third = advbench(tmp_path, "run", *options, "--retry-failed", env=fixed)
    assert (third.returncode, third.stderr.count("failed")) == (0, 0)
    assert not [path for path in (tmp_path / ".advbench" / "store" / "failures").rglob("*") if path.is_file()]


GRID = (
    "--defense erm,bnn,adv_bnn --attack fgsm,pgd --affinity fgsm,pgd --eps 0.05,0.15 --limit 60 --draws 4 "
    "--set erm.stages=[4] "
    "--set bnn.stages=[4] --set adv_bnn.stages=[3] --set adv_bnn.steps=2 --set pgd.steps=3"
).split()
TASKS = 3 + 12 + 3 + 36


def results(folder: Path) -> str:
    """results.csv without the seconds."""
    frame = pd.read_csv(folder / "results.csv", dtype=str)
    assert len(frame) == 3 + 36
    return frame.drop(columns="seconds").to_csv(index=False)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The results of the grid from one process, uninterrupted."""
    folder = tmp_path_factory.mktemp("reference")
    done = advbench(folder, "run", *GRID, "--executor", "inline")
    assert done.returncode == 0, done.stderr
    return results(folder / "results")


def start(folder: Path, *options: str, store: str = "store", env: dict[str, str] | None = None) -> Any:
    """A driver in the background."""
    with (folder / "err.txt").open("ab") as err:
        return subprocess.Popen(
            [sys.executable, "-m", "advbench", "run", *GRID, "--store", store, *options],
            cwd=folder,
            env={**os.environ, **(env or {})},
            stdout=subprocess.DEVNULL,
            stderr=err,
        )


def records(folder: Path) -> dict[str, bytes]:
    """The records in a store."""
    return {path.stem: path.read_bytes() for path in (folder / "store" / "records").rglob("*.json")}


def wait_for(condition: Callable[[], object], process: Any, seconds: float = 400) -> None:
    """Until it holds or the process ended."""
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """Worker processes of a driver."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def kill_drivers(folder: Path, kills: int, executor: str) -> None:
    """Kill the driver at random moments, each time followed by the same command."""
    moments = random.Random(kills)
    kept: dict[str, bytes] = {}
    for _ in range(kills):
        process = start(folder, *executor.split())
        time.sleep(moments.uniform(0, 1.5))
        already = len(records(folder))
        wait_for(lambda already=already: len(records(folder)) > already, process, 400)  # type: ignore[misc]
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = records(folder)
        assert all(now.get(key) == raw for key, raw in kept.items())
        assert all(json.loads(raw)["key"] == key for key, raw in now.items())
        kept = now
    assert start(folder, *executor.split()).wait() == 0
    now = records(folder)
    assert all(now.get(key) == raw for key, raw in kept.items() if json.loads(raw)["kind"] != "craft")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's process table")
@pytest.mark.slow
def test_killed_drivers_lose_nothing_and_run_nothing_twice(reference: str, tmp_path: Path) -> None:
    kill_drivers(tmp_path, 5, "--executor local --workers 2")
    assert results(tmp_path / "results") == reference


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["--executor inline", "--executor local --workers 2"])
def test_a_hundred_kills_of_the_driver(executor: str, reference: str, tmp_path: Path) -> None:
    kill_drivers(tmp_path, 50, executor)
    assert results(tmp_path / "results") == reference


def kill_workers(folder: Path, kills: int) -> None:
    moments = random.Random(kills)
    process = start(folder, "--executor", "local", "--workers", "2", "--retries", "50")
    done = 0
    while done < kills and process.poll() is None:
        time.sleep(moments.uniform(0.05, 0.4))
        workers = children(process.pid)
        if workers:
            try:
                os.kill(moments.choice(workers), signal.SIGKILL)
                done += 1
            except ProcessLookupError:
                continue
    assert process.wait(500) == 0
    assert done == kills


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's process table")
def test_killed_workers_are_replaced_and_the_run_ends_by_itself(reference: str, tmp_path: Path) -> None:
    kill_workers(tmp_path, 3)
    assert results(tmp_path / "results") == reference


@pytest.mark.slow
def test_twenty_kills_of_workers(reference: str, tmp_path: Path) -> None:
    kill_workers(tmp_path, 20)
    assert results(tmp_path / "results") == reference


def test_workers_die_with_their_driver(tmp_path: Path) -> None:
    process = start(tmp_path, "--executor", "local", "--workers", "2")
    workers: list[int] = []

    def found() -> bool:
        workers[:] = children(process.pid)
        return len(workers) == 2

    wait_for(found, process)
    process.kill()
    process.wait()
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupt_ends_workers_leases_and_run_cleanly(how: signal.Signals, reference: str, tmp_path: Path) -> None:
    hearing = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [sys.executable, "-c", f"{hearing}from advbench.cli.app import script; script()", "run", *GRID]
    process = subprocess.Popen(
        [*command, "--executor", "local", "--store", "store"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: records(tmp_path), process)
    workers = children(process.pid)
    process.send_signal(how)
    _, err = process.communicate(timeout=400)
    assert process.returncode == 130
    assert err.strip().splitlines()[-1] == "interrupted; run the same command again to resume"
    assert "Traceback" not in err
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert not [path for path in (tmp_path / "store" / "leases").rglob("*") if path.is_file()]
    assert (
        "interrupted: erm, bnn, adv_bnn under fgsm, pgd on digits"
        in advbench(tmp_path, "status", "--store", "store").stdout
    )
    assert start(tmp_path).wait() == 0
    assert results(tmp_path / "results") == reference


def test_two_drivers_share_a_store_and_do_each_task_once(reference: str, tmp_path: Path) -> None:
    how = "--log-json --executor inline --out".split()
    drivers = [start(tmp_path, *how, f"out{index}") for index in range(2)]
    assert [driver.wait(500) for driver in drivers] == [0, 0]
    lines = [json.loads(line) for line in (tmp_path / "err.txt").read_text().splitlines()]
    finished = [line["key"] for line in lines if line["event"] == "finished"]
    assert len(finished) == len(set(finished)) == TASKS
    assert len([line for line in lines if line["event"] == "elsewhere"]) >= 1
    assert {line["ran"]["pid"] for line in lines if line["event"] == "finished"} == {d.pid for d in drivers}
    for index in range(2):
        assert results(tmp_path / f"out{index}") == reference
    assert not [path for path in (tmp_path / "store" / "leases").rglob("*") if path.is_file()]
    crafted = {json.loads(raw)["key"] for raw in records(tmp_path).values() if json.loads(raw)["kind"] == "craft"}
    assert not [path for path in (tmp_path / "store" / "artifacts").rglob("*") if path.stem in crafted]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs privileges")
    yield disk
    subprocess.run(["umount", str(disk)], check=False)


def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_space(
    small_disk: Path, reference: str, tmp_path: Path
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2_000_000))
    process = start(tmp_path, store=str(small_disk / "store"))
    assert process.wait(500) == 2
    err = (tmp_path / "err.txt").read_text().strip().splitlines()
    assert err[-1].startswith("error: cannot write")
    assert "No space left on device" in err[-1]
    assert not [line for line in err if "Traceback" in line]
    verified = advbench(tmp_path, "store", "verify", "--store", str(small_disk / "store"))
    assert verified.returncode == 0, verified.stdout
    ballast.unlink()
    assert start(tmp_path, store=str(small_disk / "store")).wait(500) == 0
    assert results(tmp_path / "results") == reference


def test_what_a_plugin_leaves_behind_reaches_no_other_task(hostile: dict[str, str], tmp_path: Path) -> None:
    found = []
    for first in ("hostile,", ""):
        folder = tmp_path / (first or "alone")
        folder.mkdir()
        options = (
            f"--defense erm,bnn --attack {first}fgsm --affinity fgsm --eps 0.1 --limit 20 --set bnn.stages=[1]".split()
        )
        leak = ["--set", "hostile.how=leak"] if first else []
        done = advbench(folder, "run", *options, "--set", "erm.stages=[1]", *leak, env=hostile)
        frame = pd.read_csv(folder / "results" / "results.csv", dtype=str)
        found.append(frame[frame.attack != "hostile"].drop(columns="seconds").reset_index(drop=True))
        assert "craft fgsm 0.1 on bnn, seed 0: failed" not in done.stderr
    pd.testing.assert_frame_equal(*found)


def test_with_log_json_every_line_on_standard_error_is_json(hostile: dict[str, str], tmp_path: Path) -> None:
    how = "--defense erm --attack hostile --eps 0.1 --limit 20 --set erm.stages=[1] --log-json".split()
    for options, events in (
        (["--set", "hostile.how=chatter", "--executor", "inline"], {"plan", "began", "said", "finished"}),
        (["--set", "hostile.how=huge", "--executor", "local"], {"failed", "skipped", "note", "forecast"}),
    ):
        done = advbench(tmp_path, "run", *how, *options, env=hostile)
        assert events <= {json.loads(line)["event"] for line in done.stderr.splitlines()}
        assert "to python" not in done.stdout


@pytest.mark.parametrize("options", [["--nonsense"], ["--executor", "foo"], ["--device", "tpu9"]])
def test_with_log_json_errors_are_json_too(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--defense", "erm", "--attack", "fgsm", "--log-json", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "error"


def test_a_plugin_that_moves_about_moves_nothing(tmp_path: Path) -> None:
    code = HOSTILE.replace(
        'if how == "hang":', 'if how == "move":\n            os.chdir("/")\n        if how == "hang":'
    )
    code = code.replace('if how == "exit":', 'if how == "mute":\n            raise Mute\n        if how == "exit":')
    code += "\nclass Mute(BaseException):\n    def __str__(self):\n        raise RuntimeError\n"
    env = install(tmp_path, "hostile", code)
    options = "--defense erm --attack hostile@move,hostile@mute --eps 0.1 --limit 20 --set erm.stages=[1]".split()
    sets = "--set hostile@move.how=move --set hostile@mute.how=mute --executor inline".split()
    done = advbench(tmp_path, "run", *options, *sets, env=env)
    assert done.returncode == 1, done.stderr
    assert "failed: craft hostile@mute 0.1 on erm, seed 0: Mute without a printable message" in done.stderr
    assert (tmp_path / "results" / "results.csv").exists()


def test_a_pickle_in_any_place_that_the_store_reads_stays_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pickle

    options = "--defense erm --attack fgsm --eps 0.1 --limit 20 --set erm.stages=[1] --keep-examples".split()
    assert advbench(tmp_path, "run", *options).returncode == 0
    before = (tmp_path / "results" / "results.csv").read_text().count("failed")
    store = tmp_path / ".advbench" / "store"
    keys = [path.stem for path in (store / "records").rglob("*.json")]
    planted = pickle.dumps(Harmful(str(tmp_path / "opened")))
    places = [path for path in store.rglob("*") if path.is_file()]
    for key in keys:
        places += [store / "failures" / key[:2] / f"{key}.json", store / "leases" / key[:2] / f"{key}.0.json"]
        places += [store / "partial" / f"{key}.safetensors"]
    for path in [*places, store / "runs" / "odd.json"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(planted)
    done = advbench(tmp_path, "run", *options)
    assert done.returncode == before == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    for path in places:
        path.write_bytes(planted)
    for command in ("status", "plan --defense erm --attack fgsm", "store verify", "store gc", "report results"):
        with warnings.catch_warnings(action="ignore"):
            main(command.split())
    assert not (tmp_path / "opened").exists()
