"""Boards whose rows come from files: they are kept, verified, and imported by nothing but a rerun that is told to."""

from __future__ import annotations

import json
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from advbench.boards.board import read_board
from advbench.cli.app import main
from advbench.registry import files

DEFENSE = """
import os
from helpers import SIGMA
from advbench.models import GaussianNoise
from advbench.training import ErmLoss, Field, TrainParams

open(os.environ["MARK"], "w").close()

class Smoothed(ErmLoss):
    class Params(TrainParams):
        sigma: float = Field(default=SIGMA, description="standard deviation")

    presets = {"digits": {"stages": (1,), "batch_size": 64}}

    def noise(self):
        return GaussianNoise(self.params.sigma, 0.0)
"""
ATTACK = """
import os
from advbench.attacks import Attack

open(os.environ["MARK"], "w").close()

class Mine(Attack):
    def run(self, clf, x, goal, threat, generator):
        return (x + threat.eps).clamp(0, 1) if threat.norm == "linf" else x
"""
NET = """
import os
from torch import nn

open(os.environ["MARK"], "w").close()

def build(channels, height, width, classes, *, hidden: int = 8):
    inputs = channels * height * width
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))
"""
OPTIONS = "--eps 0.1 --limit 20 --draws 2 --executor inline --device cpu --affinity none".split()
NETS = ["--set", "fgsm_at.arch=net.py:build", "--set", "fgsm_at.arch.hidden=12", "--set", "fgsm_at.stages=[1]"]
ATTACKS = ["--attack", "attack.py:Mine,fgsm,worst_case", "--set", 'worst_case.attacks=["attack.py:Mine"]']


def run(*arguments: str) -> None:
    assert main(["run", *OPTIONS, *ATTACKS, *arguments]) == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A board of a registered defense and one of a file, under an attack of a file, and a submission of another."""
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MARK", str(folder / "mark"))
        Path("defense.py").write_text(DEFENSE)
        Path("helpers.py").write_text("SIGMA = 0.1\n")
        Path("attack.py").write_text(ATTACK)
        Path("net.py").write_text(NET)
        run("--defense", "erm,fgsm_at,defense.py:Smoothed", "--out", "run", "--set", "erm.stages=[1]", *NETS)
        shutil.copytree("run", "board", ignore=shutil.ignore_patterns("*.csv", "*.md", "*.html"))
        assert main(["leaderboard", "build", "board", "--store", ".advbench/store"]) == 0
        Path("helpers.py").write_text("SIGMA = 0.3\n")
        run("--defense", "defense.py:Smoothed@strong", "--out", "other")
        for path in ("defense.py", "helpers.py", "attack.py", "net.py", "mark"):
            Path(path).unlink()
        yield folder


@pytest.fixture
def board(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the board, in a process that has read no file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    monkeypatch.setattr(files, "_known", {})
    monkeypatch.setattr(files, "_packages", {})
    monkeypatch.setattr(sys, "meta_path", [each for each in sys.meta_path if not isinstance(each, files._Package)])
    for name in [name for name in sys.modules if name.startswith(files.PREFIX)]:
        monkeypatch.delitem(sys.modules, name)
    return Path(shutil.copytree(made / "board", tmp_path / "board"))


def test_nothing_but_a_rerun_that_is_told_to_imports_what_a_board_brings(
    made: Path, board: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ["--store", str(made / ".advbench/store")]
    other = str(made / "other")
    for command in (
        ["leaderboard", "check", str(board)],
        ["leaderboard", "build", str(board), *store, "--out", "page"],
        ["leaderboard", "submit", other, "--defense", "strong", *store],
        ["leaderboard", "merge", str(board), "strong.advbench.zip"],
        ["leaderboard", "check", str(board)],
        ["leaderboard", "export", str(board), "--out", "exported"],
        ["leaderboard", "check", str(board), "--rerun", "2", "--executor", "inline", "--device", "cpu"],
        ["report", other, *store],
        ["store", "export", "some.tar", "--run", other, *store],
    ):
        assert main(command) == 0, (command, capsys.readouterr().err)
        assert not Path("mark").exists(), command
    for command in (
        ["run", "--spec", str(board / "spec.toml")],
        ["plan", "--spec", str(board / "spec.toml")],
        ["run", "--spec", str(board / "spec.toml"), "--defense", "strong"],
        ["run", "--spec", str(board / "spec.toml"), "--defense", "erm"],
    ):
        capsys.readouterr()
        assert main(command) == 2
        assert "which is not run unasked; read it and, if you trust it, add --run-files" in capsys.readouterr().err
        assert not Path("mark").exists(), command
    options = "--rerun 8 --rerun-seed 0 --run-files --executor inline --device cpu".split()
    assert main(["leaderboard", "check", str(board), *options]) == 0, capsys.readouterr().err
    assert "8 cells recomputed, 8 of them equal" in capsys.readouterr().out
    assert Path("mark").exists()


def test_a_board_keeps_its_files_and_what_keys_hold_of_them(board: Path) -> None:
    index = json.loads((board / "files/index.json").read_text())
    assert set(index["choices"]) == {"Smoothed", "fgsm_at", "Mine", "worst_case"}
    digest = index["choices"]["Smoothed"]["component"]["file"]
    assert (board / "files" / digest / "defense.py").read_text() == DEFENSE
    assert (board / "files" / digest / "helpers.py").read_text() == "SIGMA = 0.1\n"
    spec = (board / "spec.toml").read_text()
    assert f'Smoothed = "file:{digest}:Smoothed"' in spec
    assert "attack.py" not in spec
    assert "--run-files" in (board / "README.md").read_text()


def test_a_run_with_a_boards_spec_needs_only_the_files_that_it_uses(
    made: Path, board: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = ["--spec", str(board / "spec.toml")]
    local = ["--executor", "inline", "--store", str(made / ".advbench/store")]
    assert main(["plan", *spec, "--defense", "erm,bnn", "--attack", "fgsm"]) == 0
    Path("mine.py").write_text(DEFENSE.replace("from helpers import SIGMA", "SIGMA = 0.2"))
    assert main(["plan", *spec, "--defense", "mine.py:Smoothed", "--attack", "fgsm"]) == 0
    assert "1 |" in capsys.readouterr().out
    mine = read_sources(board, "attack.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_known", {})
        assert main(["run", *spec, "--defense", "mine.py:Smoothed@new", *local]) == 2
        problem = capsys.readouterr().err
        assert f"Mine is in the board's file {mine}, which is not run unasked" in problem
        assert f"add --run-files, or write {mine}:Mine" in problem
    by_path = ["--attack", f"{mine}:Mine,fgsm,worst_case"]
    assert main(["run", *spec, "--defense", "mine.py:Smoothed@new", *by_path, *local, "--out", "new"]) == 0
    assert main(["leaderboard", "submit", "new", "--defense", "new", *local[2:]]) == 0
    assert main(["leaderboard", "merge", str(board), "new.advbench.zip"]) == 0, capsys.readouterr().err
    assert main(["leaderboard", "check", str(board)]) == 0, capsys.readouterr().err


def test_all_cells_of_a_board_with_files_are_computed_when_asked(made: Path, board: Path) -> None:
    local = ["--executor", "inline", "--store", "store"]
    shutil.copytree(made / ".advbench/store", "store")
    before = read_board(board)
    text = (board / "spec.toml").read_text().replace("affinity = []", 'affinity = ["fgsm"]')
    (board / "spec.toml").write_text(text)
    assert main(["run", "--spec", str(board / "spec.toml"), "--run-files", *local, "--out", "all"]) == 0
    assert main(["leaderboard", "build", str(board), *local[2:]]) == 0
    after = read_board(board)
    assert after.missing == 0
    assert len(after.cells) > len(before.cells)
    assert (board / "files/index.json").read_bytes() == (made / "board/files/index.json").read_bytes()


@pytest.mark.filterwarnings("ignore:removed the settings or files of")
@pytest.mark.parametrize("stored", [False, True], ids=["alone", "store"])
@pytest.mark.parametrize("label", ["erm", "fgsm_at", "Smoothed"])
def test_a_defense_is_withdrawn_by_its_name_in_the_spec(
    made: Path, board: Path, label: str, capsys: pytest.CaptureFixture[str], *, stored: bool
) -> None:
    spec = board / "spec.toml"
    spec.write_text(spec.read_text().replace(f'    "{label}",\n', "", 1))
    store = ["--store", str(made / ".advbench" / "store")] if stored else []
    assert main(["leaderboard", "build", str(board), *store]) == 0
    assert main(["leaderboard", "check", str(board)]) == 0
    assert "ok: 8 of 8 cells of 2 defenses" in capsys.readouterr().out
    there = {path.relative_to(board): path.read_bytes() for path in board.rglob("*") if path.is_file()}
    assert not [
        name for name, raw in there.items() if name.suffix != ".gz" and re.search(rf"\b{label}\b".encode(), raw)
    ]
    assert main(["leaderboard", "build", str(board), *store]) == 0
    assert there == {path.relative_to(board): path.read_bytes() for path in board.rglob("*") if path.is_file()}


def read_sources(board: Path, name: str) -> Path:
    (found,) = board.glob(f"files/*/{name}")
    return found.relative_to(Path.cwd())


@pytest.mark.parametrize("label", ["Smoothed", "fgsm_at"])
def test_a_replaced_defense_takes_its_file_with_it(made: Path, board: Path, label: str) -> None:
    store = ["--store", str(made / ".advbench/store")]
    assert main(["leaderboard", "submit", str(made / "run"), "--defense", label, *store]) == 0
    before = {path.relative_to(board): path.read_bytes() for path in board.rglob("*") if path.is_file()}
    assert main(["leaderboard", "merge", str(board), f"{label}.advbench.zip"]) == 2
    assert main(["leaderboard", "merge", str(board), f"{label}.advbench.zip", "--replace"]) == 0
    assert {path.relative_to(board): path.read_bytes() for path in board.rglob("*") if path.is_file()} == before


def alter(board: Path, name: str) -> None:
    index = board / "files" / "index.json"
    values = json.loads(index.read_text())
    digest = values["choices"]["Smoothed"]["component"]["file"]
    if name == "source":
        (board / "files" / digest / "defense.py").write_text("print('evil')\n")
    elif name == "helper":
        (board / "files" / digest / "helpers.py").unlink()
    elif name == "surplus":
        (board / "files" / digest / "more.py").write_text("")
    elif name == "index":
        index.write_text("{")
    elif name == "none":
        shutil.rmtree(board / "files")
    elif name == "place":
        values["sources"][digest]["sha256"]["../../evil.py"] = "0" * 64
        index.write_text(json.dumps(values))
    elif name == "path":
        (board / "evil.py").write_text(DEFENSE)
        spec = (board / "spec.toml").read_text()
        (board / "spec.toml").write_text(spec.replace(f"file:{digest}:Smoothed", f"{board}/evil.py:Smoothed"))
    elif name == "part":
        (board / "evil.py").write_text(ATTACK)
        spec = (board / "spec.toml").read_text()
        (board / "spec.toml").write_text(spec + f'\n[set.pgd]\nx = "{board}/evil.py:Mine"\n')
    elif name == "attack":
        (board / "evil.py").write_text(ATTACK)
        lines = [line for line in (board / "spec.toml").read_text().splitlines() if not line.startswith("affinity")]
        text = "\n".join(lines).replace('    "Mine",\n', f'    "{board}/evil.py:Mine@evil",\n')
        (board / "spec.toml").write_text(text)
    elif name == "cuckoo":  # a registered defense by another's hyperparameters
        erm = next(r for r in read_board(board).records.values() if r["inputs"].get("defense", {}).get("name") == "erm")
        values["choices"]["erm"] = {"kind": "defense", "component": {**erm["inputs"]["defense"], "version": "99"}}
        index.write_text(json.dumps(values, indent=1) + "\n")
    elif name == "params":
        values["choices"]["Smoothed"]["component"]["params"]["sigma"] = 0.9
        index.write_text(json.dumps(values, indent=1) + "\n")


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("source", 2, "file defense.py of .*: expected the SHA-256 in index.json under .*, got other content"),
        ("helper", 2, "file defense.py of .*: expected the SHA-256 in index.json under .*, got other content"),
        ("surplus", 2, "expected the files that index.json lists, got files/.*/more.py"),
        ("index", 2, "files/index.json of .*: expected the index of a run with files"),
        ("none", 2, "'fgsm_at': expected an entry in files/index.json"),
        ("place", 2, "files/index.json of"),
        ("path", 0, ""),
        ("part", 2, "expected names of stored files, got .*evil.py:Mine"),
        ("attack", 2, "expected names of stored files, got .*evil.py:Mine"),
        ("cuckoo", 1, "a file does not match the records: files/index.json"),
        ("params", 1, "a record of another spec, data set or version of a plugin"),
    ],
)
def test_what_was_altered_is_found_and_not_imported(
    board: Path, name: str, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    alter(board, name)
    found = main(["leaderboard", "check", str(board)])
    err = capsys.readouterr().err
    if name == "path":  # index.json says what it stands for; spec.toml is not as it would be written
        assert not Path("mark").exists()
        return
    assert found == code, err
    assert re.search(message, err)
    assert not Path("mark").exists()


def test_a_submission_with_other_places_is_refused(made: Path, board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ["--store", str(made / ".advbench/store")]
    assert main(["leaderboard", "submit", str(made / "other"), "--defense", "strong", *store]) == 0
    with zipfile.ZipFile("strong.advbench.zip", "a") as archive:
        archive.writestr("files/../../evil.py", "x = 1\n")
    assert main(["leaderboard", "merge", str(board), "strong.advbench.zip"]) == 2
    assert "expected a file from 'advbench leaderboard submit'" in capsys.readouterr().err
    assert not (board.parent.parent / "evil.py").exists()
