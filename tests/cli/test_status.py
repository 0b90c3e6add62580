"""What people and programs see of a run: status, plan, displays."""

from __future__ import annotations

import io
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import dead_process, other, some_inputs
from rich.console import Console

from advbench.cli.app import main
from advbench.cli.display import Display, json_line
from advbench.cli.status import runs_now, status_lines
from advbench.grid.plan import Task
from advbench.grid.scheduler import _Running
from advbench.progress import Progress
from advbench.store.records import Store

QUICK = "--defense erm --attack fgsm --eps 0.1 --limit 20 --set erm.stages=[1]".split()
TASK = Task(some_inputs("train"), "k" * 64, defense="[erm]", cost=10.0)
RECORD = {
    "kind": "train",
    "seconds": 1.5,
    "result": {"training": {"loss": float("nan")}},
    "memory": {"peak": 5, "device": 9},
    "ran": {"pid": 1},
}
TASKS = {"planned": 4, "done": 1, "failed": 1, "running": 1, "waiting": 1, "done elsewhere": 0}
SHOWN: dict[str, Any] = {
    "about": "erm under fgsm on digits",
    "tasks": TASKS,
    "places": 2,
    "tasks_per_minute": 3.5,
    "seconds_left": 100.0,
    "running": [{"task": "train erm, seed 0", "place": "cpu worker 1", "seconds": 12.0, "share": 0.25}],
    "failures": [{"task": "train bnn, seed 0", "reason": "no luck"}],
}


def test_status_shows_what_runs_what_died_and_what_ended(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    pid, birth = dead_process()
    other("running", store, started="3", **SHOWN)
    other("running", store, started="2", pid=pid, born=birth, plan="a", **SHOWN)
    other("done", store, started="25", plan="a")
    for index in range(5):
        other("done", store, started=f"1{index}")
    found = runs_now(store.storage, 3)
    assert [(run.state, run.started) for run in found] == [
        ("running", "3"),
        ("done", "25"),
        ("dead", "2"),
        ("done", "14"),
    ]
    text = "\n".join(status_lines(found, str(tmp_path)))
    assert text.startswith("running: erm under fgsm on digits\n")
    assert "  tasks: 4 planned, 1 done, 1 failed, 1 running, 1 waiting\n" in text
    dead = text[text.index("dead: ") :].split("\n\n")[0]
    assert "  tasks: 4 planned, 1 done, 1 failed, 2 waiting\n" in dead
    assert "  run again from 25: done" in dead
    assert "cpu worker" not in dead
    assert "  2 workers, 3.5 tasks a minute, about 2 min left\n" in text
    assert "  on cpu worker 1: train erm, seed 0, 12 s, 25 %\n" in text
    assert "  failed: train bnn, seed 0: no luck\n" in text
    assert len(runs_now(store.storage, 0)) == 1


def test_a_silent_driver_elsewhere_counts_as_dead(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    other("running", store, machine="another", started="1", updated="2020-01-01T00:00:00+00:00")
    other("running", store, machine="another", started="2")
    assert [run.state for run in runs_now(store.storage, 3)] == ["running", "dead"]


def test_status_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ["--store", str(tmp_path / "store")]
    assert main(["status", *store]) == 0
    assert capsys.readouterr().out == f"no run has used store {tmp_path / 'store'}\n"
    assert main(["run", *QUICK, *store, "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert main(["status", *store]) == 0
    assert "done: erm under fgsm on digits" in capsys.readouterr().out
    assert main(["status", *store, "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert (run["state"], run["tasks"]["done"]) == ("done", 4)


def test_a_plan_knows_times_and_memory_once_they_were_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ["--store", str(tmp_path / "store")]
    assert main(["plan", *QUICK, *store, "--tasks"]) == 0
    out = capsys.readouterr().out
    assert out.count("not measured") == 2 * 4 + 4
    assert not (tmp_path / "store").exists()
    assert main(["run", *QUICK, *store, "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert main(["plan", *QUICK, *store, "--seeds", "0,1", "--tasks"]) == 0
    out = capsys.readouterr().out
    assert "not measured" not in out
    assert "MiB" in out
    assert "| all      |         8 |        4 |" in out
    assert "the longest chain of tasks takes" in out
    assert "; after " in out


@pytest.mark.parametrize("kind", ["plain", "live", "json"])
def test_a_display_shows_every_event_and_survives_odd_text(kind: str) -> None:
    file = io.StringIO()
    console = Console(file=file, width=200, force_terminal=kind == "live")
    with Display({TASK.key: TASK}, {TASK.key: TASK}, console, as_json=kind == "json") as display:
        display("started", TASK)
        display("began", TASK, place="cpu [1]")
        display("progressed", TASK, progress=Progress(1, 4, {"loss [/]": float("inf")}))
        display("said", TASK, line="[bold]odd[/nothing]")
        display("forecast", seconds_left=100.0)
        display._next["waits"] = 0.0
        display("waits", tasks=3)
        display("waits", tasks=2)
        display("began", TASK, place="another")
        if kind == "live":
            time.sleep(0.3)
        display("finished", TASK, record=RECORD)
        display("failed", TASK, reason="no [/luck]", trace="Traceback [/here]")
        display("skipped", TASK)
        display("elsewhere", TASK)
    text = file.getvalue()
    for word in ("[bold]odd[/nothing]", "no [/luck]", "Traceback [/here]"):
        assert word in text
    if kind == "json":
        events = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
        assert [event["event"] for event in events] == (
            "plan started began progressed said forecast waits began finished failed skipped elsewhere".split()
        )
        assert events[8]["training"] == {"loss": None}
        assert all(event["key"] == TASK.key for event in events if "task" in event)


def test_a_line_of_json_is_one_line_of_json() -> None:
    line = json_line("x", text="NaN\nInfinity\u2028", number=float("-inf"))
    assert "\n" not in line
    assert json.loads(line)["number"] is None
    assert json.loads(line)["text"] == "NaN\nInfinity\u2028"


def test_the_time_left_of_a_task_follows_from_its_own_progress() -> None:
    assert _Running("here", 0.0, 0.25).left(1000.0, 10.0) == pytest.approx(30.0)
    assert _Running("here", 0.0, 0.01).left(50.0, 10.0) == pytest.approx(40.0)
    assert _Running("here", 0.0, 0.01).left(None, 10.0) is None
    assert _Running().left(50.0, 10.0) == 50.0


def test_a_plan_and_a_report_show_what_failed_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from advbench.grid.run import prepare
    from advbench.grid.spec import make_spec

    spec = {"defenses": ["erm"], "attacks": ["fgsm"], "eps": [0.1], "limit": 20, "set": {"erm": {"stages": [1]}}}
    (craft,) = [task for task in prepare(make_spec(spec)).tasks.values() if task.kind == "craft"]
    store = ["--store", str(tmp_path / "store")]
    Store(store[1]).write_failure(craft.key, {"reason": "no luck"})
    assert main(["plan", *QUICK, *store]) == 0
    assert "1 of the tasks to run failed in a previous run; use --retry-failed" in capsys.readouterr().out
    out = tmp_path / "out"
    assert main(["run", *QUICK, *store, "--out", str(out)]) == 1
    before = (out / "results.csv").read_bytes()
    assert b"failed: depends on a failed task: craft fgsm 0.1 on erm, seed 0" in before
    assert main(["report", str(out), *store]) == 1
    assert (out / "results.csv").read_bytes() == before
    capsys.readouterr()


def test_a_narrow_terminal_keeps_bars_and_the_time_left() -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True)
    long = replace(TASK, defense="a_defense_of_a_long_name@with_a_label", source="another_long_name", attack="eot_pgd")
    with Display({"k": long}, {"k": long, "other": TASK}, console) as display:
        display("began", long, place="cuda:0 worker 1")
        display("progressed", long, progress=Progress(1, 2, {"loss": 0.5, "train accuracy": 0.75}))
        display("forecast", seconds_left=754.0)
        display._bars.refresh()
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).rstrip() for line in re.split(r"[\r\n]", file.getvalue())]
    (whole,) = {line for line in lines if "about 13 min left" in line}
    assert re.fullmatch(r"0/2 tasks +[━╸╺ ]{10} +\d+% about 13 min left", whole)
    (one,) = {line for line in lines if "a_defense" in line and "50%" in line}
    assert re.fullmatch(r"  \w+ a_defense_of_a_long_name@.*… +[━╸╺ ]{10} +50% loss 0.5 .*…", one)
    assert max(map(len, lines)) <= 80


def test_plain_output_says_something_at_least_every_15_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("advbench.cli.display.time.monotonic", lambda: now[0])
    file = io.StringIO()
    with Display({"k": TASK}, {"k": TASK, "other": TASK}, Console(file=file, width=80)) as display:
        for second in range(60):
            now[0] = float(second)
            if second == 20:
                display("began", TASK, place="cpu")
            if second == 40:
                display("progressed", TASK, progress=Progress(1, 4, {}))
            display("forecast", seconds_left=60.0 - second if second > 30 else None)
    assert file.getvalue().splitlines() == [
        "[0/2] starting",
        f"[0/2] running {TASK.label}",
        f"[0/2] running {TASK.label} (25 %), about 15 s left",
    ]


def test_summaries_are_not_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in ([], ["store"], ["leaderboard"]):
        assert main([*command, "--help"]) == 0
        out = capsys.readouterr().out
        assert "..." not in out.partition("Commands:")[2]
        assert max(map(len, out.splitlines())) <= 80
