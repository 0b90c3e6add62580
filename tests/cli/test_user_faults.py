"""What the environment and hostile names do to the command line: one line each, and nothing that a terminal obeys."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Cli

from advbench.cli.app import main
from advbench.cli.display import Display, json_line
from advbench.cli.output import complain, say
from advbench.errors import InputError, one_line, printable
from advbench.store.records import Store, record_bytes, record_name

QUICK = "--defense erm --attack fgsm --eps 0.1 --limit 20 --set erm.stages=1 --affinity none".split()
Capture = pytest.CaptureFixture[str]
HOSTILE = "a\x1b[2Jb\x07\x9b31m\u202e\u200b\udcff\x7f"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def error_of(capsys: Capture, *arguments: str) -> str:
    """The one line that bad input gets."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err[:-1].isprintable()
    assert len(err) < 2200
    return err


# Nothing was computed


@pytest.mark.parametrize("reason", ["expected a finite loss", "exceeded the time limit"])
def test_a_run_without_any_result_shows_why_in_its_tables(reason: str, tmp_path: Path, capsys: Capture) -> None:
    slow = ["--executor", "local", "--device", "cpu", "--time-limit", "0.2", "--set", "erm.stages=500"]
    options = [*QUICK, *(slow if "limit" in reason else ["--set", "erm.lr=1e30", "--set", "erm.stages=2"])]
    assert main(["run", *options]) == 1
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert [line for line in err.splitlines() if reason in line]
    assert "failed" in out
    for name in ("leaderboard.md", "results.csv", "leaderboard.html"):
        assert reason in (tmp_path / "results" / name).read_text()
    assert "no results" in (tmp_path / "results" / "leaderboard.md").read_text()
    if "limit" not in reason:  # which another run tries again
        assert main(["report", "--format", "csv,md,html,latex,svg"]) == 1
        assert reason in (tmp_path / "results" / "leaderboard.md").read_text()


# Homes


def nowhere(tmp_path: Path) -> dict[str, str]:
    """An environment in which nobody knows the user, as in many containers."""
    (tmp_path / "site").mkdir()
    text = "import pwd\npwd.getpwuid = pwd.getpwnam = {}.__getitem__\n"
    (tmp_path / "site" / "sitecustomize.py").write_text(text)
    paths = [str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


@pytest.mark.parametrize("command", [["doctor"], ["plan", *QUICK], ["run", *QUICK, "--executor", "local"]], ids=str)
def test_a_user_without_a_home_can_work(
    command: list[str], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME", raising=False)
    env = nowhere(tmp_path)
    done = cli(*command, env=env)
    assert done.returncode == 0, done.stderr


def test_a_tilde_without_a_home_is_refused(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    env = nowhere(tmp_path)
    for argument in ("--out=~/x", "~/x"):
        refused = cli("run", *QUICK, argument, env=env)
        assert refused.returncode == 2
        assert f"argument '{argument}': expected a known home folder" in refused.stderr
    refused = cli("plan", *QUICK, env={**env, "ADVBENCH_STORE": "~/s"})
    assert refused.returncode == 2
    assert "got an unknown home folder" in refused.stderr
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("form", ["--{}=~/{}", "--{} ~/{}"])
def test_a_tilde_is_the_home_in_every_option(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    options = [part for name in ("out", "store") for part in form.format(name, name).split()]
    assert main(["run", *QUICK, *options]) == 0
    assert (tmp_path / "home" / "out" / "results.csv").is_file()
    assert (tmp_path / "home" / "store" / "records").is_dir()
    assert main(["report", "~/out", "--store", "~/store"]) == 0
    assert os.listdir(tmp_path) == ["home"]


# Outputs that cannot be written


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", [["plan", *QUICK], ["--help"], ["show", "pgd"], ["nonsense"]], ids=str)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_full_device_is_one_line(command: list[str], stream: str, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: full}
        done = subprocess.run([sys.executable, "-m", "advbench", *command], check=False, text=True, **streams)  # type: ignore[call-overload]
    failed = stream == "stdout" and command != ["nonsense"]
    assert done.returncode == (2 if failed or command == ["nonsense"] else 0)
    if failed:
        assert re.fullmatch(r"error: [^\n]*output: No space left on device\n", done.stderr)


def test_a_reader_that_left_is_one_line(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        done = subprocess.run([sys.executable, "-m", "advbench", "show", "pgd"], check=False, stdout=pipe, stderr=-1)
    assert (done.returncode, done.stderr) == (2, b"error: cannot write to standard output: Broken pipe\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_another_encoding_shows_what_it_can(encoding: str, cli: Cli) -> None:
    shown = cli("show", "no\u0142\u0119", env={"PYTHONIOENCODING": encoding})
    assert shown.returncode == 2
    assert "unknown name 'no" in shown.stderr
    assert "Traceback" not in shown.stderr


# Names that a terminal would obey


@pytest.mark.parametrize("text", [HOSTILE, "two\nlines\rover\u2028", "\x85\xa0"])
def test_all_that_is_printed_is_escaped(text: str, capsys: Capture, tmp_path: Path) -> None:
    say(text)
    complain(f"error: {text}")
    out, err = capsys.readouterr()
    assert out[:-1].isprintable()
    assert err[:-1].isprintable()
    assert str(InputError(text, got=text)).isprintable()
    line = json_line("note", message=text)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["message"] == text


def test_escapes_are_pythons_and_plain_text_stays() -> None:
    assert printable("grün \u4eac") == "grün \u4eac"
    assert printable("\x1b[0m\n\u202e\udcff") == r"\x1b[0m\n\u202e\udcff"
    assert one_line(printable("a\x1b")) == printable("a\x1b")


def test_lines_of_a_run_are_escaped(capsys: Capture) -> None:
    from helpers import some_inputs

    from advbench.grid.plan import Task

    task = Task(some_inputs("train"), "k", defense=HOSTILE)
    with Display({"k": task}, {"k": task}) as display:
        display("said", task, line=HOSTILE)
        display("failed", task, reason=HOSTILE, trace=f"Traceback:\n  {HOSTILE}")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    "command", [["show", "{}"], ["plan", *QUICK, "--{}"], ["{}"], ["plan", *QUICK, "--arch", "{}"]]
)
def test_names_of_ten_thousand_characters_are_cut(command: list[str], capsys: Capture) -> None:
    message = error_of(capsys, *(part.format("b" * 10_000) for part in command))
    assert re.search(r"b{100,}\.\.\.b{90,}", message)


# Bounds


DEEP = "[" * 500 + "]" * 500


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", f"erm.lr={'1' * 5000}"], r"--set erm\.lr: expected a value of bounded size, got Exceeds the limit"),
        (["--set", f"erm.stages={DEEP}"], r"--set erm\.stages: .* got more levels of nesting than can be read"),
        (["--set", f"erm.batch_size={2**64}"], "hyperparameter 'batch_size' of ERM: expected 64-bit integers"),
        (["--set", f"erm.stages=[{2**64}]"], "hyperparameter 'stages' of ERM: expected 64-bit integers"),
        (["--draws", "1" * 400], "setting 'draws': expected .*less than"),
        (["--draws", "1" * 5000], "[Ii]nvalid value for '--draws'"),
        (["--seeds", "1" * 400], "setting 'seeds.0': expected .*less than"),
        (["--spec", "digits.toml"], "spec file digits.toml: expected readable TOML, got Exceeds the limit"),
        (
            ["--spec", "deep.toml"],
            "spec file deep.toml: expected readable TOML, got more levels of nesting",
        ),
        (["--spec", "nul.toml"], r"data set 'npz:a\\x00b': expected an existing path"),
        (["--spec", "a" * 5000], "spec file a+.*: expected readable TOML, got File name too long"),
        (["--dataset", "npz:" + "a" * 5000], "data set 'npz:a+.*expected an existing path"),
        (["--dataset", "npz:pipe"], "data set 'npz:pipe': expected a file or folder, got a device or pipe"),
        (["--dataset", "npz:\udcff.npz"], "setting 'dataset': expected values that a TOML file in UTF-8 can represent"),
        (["--data-root", "a" * 5000, "--dataset", "npz:x"], "data set 'npz:x': expected an existing path"),
        (["--out", "a" * 5000], "a+.*File name too long"),
        (["--store", "a" * 5000], "a+.*File name too long"),
        (["--store", "memory://a\0b"], r"store 'memory://a\\x00b': expected .* got a NUL in it"),
        (
            ["--attack", "transfer", "--set", "transfer.source=nope"],
            "attack 'transfer' starts from 'nope'.*unknown def",
        ),
    ],
)
def test_what_is_beyond_all_bounds_is_one_line(options: list[str], message: str, capsys: Capture) -> None:
    Path("digits.toml").write_text("draws = " + "1" * 5000)
    Path("deep.toml").write_text(f"eps = {DEEP}")
    Path("nul.toml").write_text('dataset = "npz:a\\u0000b"')
    Path("\udcff.npz").write_bytes(b"")
    os.mkfifo("pipe")
    assert re.search(message, error_of(capsys, "run", *QUICK, *options))
    assert not Path(".advbench", "store", "records").exists()


# Records that a store was given


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("train", {"classifier": "text"}),
        ("train", {"classifier": ["list"]}),
        ("evaluate", {"accuracy": "high"}),
        ("evaluate", {"attack": None}),
        ("evaluate", {"calibration": {"ece": "x", "nll": [], "brier": {}}}),
        ("evaluate", {"retention": [1]}),
        ("evaluate", {"histograms": {"total": 3}}),
    ],
)
def test_a_record_that_no_task_can_have_is_named(
    kind: str, change: dict[str, object], tmp_path: Path, capsys: Capture
) -> None:
    assert main(["run", *QUICK, "--store", "store"]) == 0
    store = Store("store")
    names = [name for name in store.storage.names("records") if f'"kind":"{kind}"' in str(store.storage.read(name))]
    record = json.loads(store.storage.read(names[-1]) or b"")
    del record["sha256"]
    record["result"].update(change)
    store.storage.write(names[-1], record_bytes(record))
    for command in (["report"], ["run", *QUICK]):
        message = error_of_either(capsys, *command, "--store", "store")
        assert f"record {record['key'][:12]}" in message
        assert "expected one that a task leaves" in message


def error_of_either(capsys: Capture, *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity"])
def test_a_number_that_json_lacks_damages_a_record(number: bytes, tmp_path: Path) -> None:
    import hashlib

    from advbench.store.storage import StoreWarning

    store, key = Store("store"), "ab" * 32
    body = b'{"key":"%s","result":{"x":%s},"schema":2' % (key.encode(), number)
    digest = hashlib.sha256(body + b"}").hexdigest().encode()
    store.storage.write(record_name(key), body + b',"sha256":"%s"}' % digest)
    with pytest.warns(StoreWarning, match="is damaged or unknown"):
        assert store.read_record(key) is None


# Small things


def test_the_version_is_printed(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"advbench \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_without_a_command_the_help_is_shown(capsys: Capture) -> None:
    assert main([]) == 2
    assert "Usage: advbench" in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("vgg16", "architecture vgg16, advbench"),
        ("digits", "default eps in linf: 0.05, 0.1, 0.15"),
        ("cifar10", "default eps in linf: 2/255, 4/255, 8/255"),
        ("gtsrb", "default net: stn"),
        ("gaussian", "noise gaussian, advbench"),
        ("samples", "posterior samples, advbench"),
    ],
)
def test_show_knows_all_that_is_registered(name: str, shown: str, capsys: Capture) -> None:
    assert main(["show", name]) == 0
    assert shown in capsys.readouterr().out


@pytest.mark.parametrize(
    ("known", "slow"), [({"avx512_bf16": False, "amx_bf16": False}, True), ({"amx_bf16": True}, False), ({}, False)]
)
def test_bfloat16_without_instructions_is_said(
    known: dict[str, bool], slow: bool, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert main(["run", *QUICK, "--precision", "bfloat16", "--device", "cpu"]) == 0
    assert ("this CPU has no bfloat16 instructions" in capsys.readouterr().err) is slow
