"""Ray: the same bytes as from one process, a cluster that loses a node, GPUs by fractions."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from helpers import some_inputs

from advbench.grid.executors import Ended
from advbench.grid.executors.ray import RayExecutor
from advbench.grid.plan import Task
from advbench.grid.tasks import Runtime

pytest.importorskip("ray")
# One after another: each of these keeps all cores busy by itself.
pytestmark = pytest.mark.xdist_group("processes")

RUN = (
    "--defense own.py:Own,adv_bnn --attack fgsm,pgd --affinity fgsm,pgd --eps 0.05,0.15 --limit 40 --draws 4 "
    "--set Own.stages=[3] --set Own.arch=own.py:build --set Own.arch.hidden=12 "
    "--set adv_bnn.stages=[3] --set adv_bnn.steps=2 --set pgd.steps=3"
).split()
TASKS = 2 + 8 + 2 + 16
OWN = """
from torch import nn
from advbench.training import ErmLoss, TrainParams

class Own(ErmLoss):
    Params = TrainParams

def build(channels, height, width, classes, *, hidden: int = 8):
    inputs = channels * height * width
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))
"""


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    (folder / "own.py").write_text(OWN)
    return subprocess.Popen(
        [sys.executable, "-m", "advbench", "run", *RUN, *options],
        cwd=folder,
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def advbench(folder: Path, *options: str) -> tuple[int, str, str]:
    process = start(folder, *options)
    out, err = process.communicate(timeout=500)
    return process.returncode, out, err


def results(folder: Path) -> str:
    return pd.read_csv(folder / "results" / "results.csv", dtype=str).drop(columns="seconds").to_csv(index=False)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in (folder / ".advbench" / "store" / "records").rglob("*.json")]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The results from one process."""
    folder = tmp_path_factory.mktemp("reference")
    code, _, err = advbench(folder, "--executor", "inline")
    assert code == 0, err
    return results(folder)


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Ray nodes on this machine: a head that runs nothing, and three that have a CPU and four logical GPUs each."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
    made.workers = [made.add_node(num_cpus=2, num_gpus=4) for _ in range(3)]
    yield made
    made.shutdown()


def test_ray_on_this_machine_gives_the_same_bytes_and_keeps_quiet(reference: str, tmp_path: Path) -> None:
    code, out, err = advbench(tmp_path, "--executor", "ray", "--workers", "2")
    assert code == 0, err
    assert results(tmp_path) == reference
    assert out.splitlines()[0].startswith("| rank")
    assert "Traceback" not in err
    told = [line for line in err.splitlines() if not re.match(r"\[0/28\] (starting|running)", line)]
    assert told[0].startswith("[1/28] ")


@pytest.mark.slow
def test_a_node_that_goes_away_costs_nothing_but_time(cluster: Any, reference: str, tmp_path: Path) -> None:
    process = start(tmp_path, "--executor", "ray", "--address", cluster.address, "--device", "cpu")
    end = time.monotonic() + 400
    while len(records(tmp_path)) < 4:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    cluster.remove_node(cluster.workers[0], allow_graceful=False)
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert results(tmp_path) == reference
    assert len({record["ran"]["place"] for record in records(tmp_path)}) >= 2


@pytest.mark.slow
def test_ten_killed_workers_lose_nothing(reference: str, tmp_path: Path) -> None:
    process = start(tmp_path, "--executor", "ray", "--workers", "2", "--retries", "20")
    killed, end = 0, time.monotonic() + 400
    while process.poll() is None and killed < 10:
        assert time.monotonic() < end
        time.sleep(0.3)
        for worker in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                title = " ".join(worker.cmdline())
                if re.match(r"ray::(train|craft|evaluate) ", title):
                    worker.kill()
                    killed += 1
                    break
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert killed == 10
    assert results(tmp_path) == reference


@pytest.mark.slow
def test_a_node_whose_gpu_torch_cannot_use_is_one_line(cluster: Any, tmp_path: Path) -> None:
    code, _, err = advbench(tmp_path, "--executor", "ray", "--address", cluster.address)
    assert code == 2, err
    assert re.search(r"error: --device: expected devices that torch can use here[^\n]*got 'cuda:0' \(", err)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_each_task_runs_in_a_process_that_saw_one_gpu_and_fractions_never_overlap(cluster: Any, share: float) -> None:
    def where(task: Task, runtime: Runtime, news: Any, *, shared: bool) -> Ended:
        began = time.time()
        time.sleep(0.5)
        node = os.environ["RAY_NODE_ID"] if "RAY_NODE_ID" in os.environ else str(os.getppid())
        gpu = f"{node} {os.environ['CUDA_VISIBLE_DEVICES']}"
        assert shared == (share < 1)
        return Ended(task.key, record={"pid": os.getpid(), "gpu": gpu, "began": began, "ended": time.time()})

    class Pretending(RayExecutor):
        run_task = staticmethod(where)  # the GPUs are Ray's word alone

    executor = Pretending(Runtime("memory://", "digits", kind="a GPU"), address=cluster.address, gpus_per_task=share)
    ended: list[Any] = []
    try:
        for number in range(16):
            executor.start(Task(some_inputs("train", number), str(number)), None)
        while len(ended) < 16:
            executor.wait(1.0, ended.append)
    finally:
        executor.close()
    records = [event.record for event in ended]
    assert len({record["pid"] for record in records}) == 16, "a process keeps the GPU that it saw first"
    assert all("," not in record["gpu"] for record in records)
    for gpu in {record["gpu"] for record in records}:
        spans = [(record["began"], record["ended"]) for record in records if record["gpu"] == gpu]
        assert max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans) <= 1 / share


@pytest.mark.slow
def test_a_task_that_no_node_holds_is_one_line(tmp_path: Path) -> None:
    code, _, err = advbench(tmp_path, "--executor", "ray", "--threads", "64")
    assert code == 2
    assert "error: --threads: expected at most" in err
    assert "the CPUs of the largest Ray node, got 64" in err


@pytest.mark.slow
def test_a_polite_end_and_the_death_of_what_only_watches(reference: str, tmp_path: Path) -> None:
    process = start(tmp_path, "--executor", "ray", "--workers", "2")
    end = time.monotonic() + 400
    while len(records(tmp_path)) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 130
    assert (out, err.splitlines()[-1]) == ("", "interrupted; run the same command again to resume")
    assert "Traceback" not in err
    process = start(tmp_path, "--executor", "ray", "--workers", "2")
    while process.poll() is None and not (watchers := processes("ray::_News")):
        assert time.monotonic() < end + 400
        time.sleep(0.05)
    for pid in watchers:
        os.kill(pid, signal.SIGKILL)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert results(tmp_path) == reference


def processes(name: str) -> list[int]:
    """Processes whose title begins so."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(name.encode()):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_an_address_where_no_cluster_answers_is_one_line(tmp_path: Path) -> None:
    code, _, err = advbench(tmp_path, "--executor", "ray", "--address", "127.0.0.1:1")
    assert code == 2
    assert err.strip().splitlines()[-1].startswith("error: --address: expected address of a running Ray cluster")
    assert "Traceback" not in err


LARGE = (
    "run --defense erm,bnn,pgd_at,adv_bnn,mc_dropout,rse --attack fgsm,pgd,eot_pgd,apgd "
    "--affinity fgsm,pgd,eot_pgd,apgd --eps 0.02,0.05,0.1,0.15 "
    "--seeds 0,1 --limit 100 --draws 5 --set erm.stages=[3] --set bnn.stages=[3] --set pgd_at.stages=[3] "
    "--set pgd_at.steps=3 --set adv_bnn.stages=[3] --set adv_bnn.steps=3 --set mc_dropout.stages=[3] "
    "--set rse.stages=[3] --set pgd.steps=5 --set eot_pgd.steps=4 --set eot_pgd.samples=3 --set apgd.steps=5"
).split()


@pytest.mark.slow
def test_a_large_grid_has_the_same_bytes_from_every_executor(tmp_path: Path) -> None:
    found = []
    for how in (["inline"], ["local", "--workers", "2"], ["ray", "--workers", "2"]):
        folder = tmp_path / how[0]
        folder.mkdir()
        command = [sys.executable, "-m", "advbench", *LARGE, "--executor", *how]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found.append(results(folder))
    assert found[0].count("\n") == 1 + 2 * 6 + 2 * 4 * 4 * 6 * 6
    assert found[1:] == found[:1] * 2
