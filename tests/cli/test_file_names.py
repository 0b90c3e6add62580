"""Plugins and nets in files, on the command line: labels, settings, keys, and what becomes of files that fail."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pandas as pd
import pytest

from advbench.cli.app import main
from advbench.cli.display import Display
from advbench.grid.execution import Execution
from advbench.grid.run import carry_out, prepare
from advbench.grid.scheduler import outstanding
from advbench.grid.spec import make_spec
from advbench.registry import files

DEFENSE = """
from advbench.models import GaussianNoise
from advbench.training import ErmLoss, Field, TrainParams

class Smoothed(ErmLoss):
    '''Noise on the images.'''

    class Params(TrainParams):
        '''Hyperparameters.'''

        sigma: float = Field(default=0.1, description="standard deviation of the noise, in pixels in [0, 1]")

    presets = {"digits": {"stages": (1,), "batch_size": 64}}

    def noise(self):
        return GaussianNoise(self.params.sigma, 0.0)

class Failing(Smoothed):
    def fit(self, module, data, context=None):
        raise SystemExit(0)
"""
ATTACK = """
from advbench.attacks import Attack

class Mine(Attack):
    '''Brighter.'''

    norms = frozenset({"linf"})

    def run(self, clf, x, goal, threat, generator):
        return (x + threat.eps).clamp(0, 1)

    def cost(self, random):
        return 0
"""
NET = """
from torch import nn

def build(channels, height, width, classes, depth: int = 1):
    layers = [nn.Linear(channels * height * width, 16), *[nn.Linear(16, 16) for _ in range(depth - 1)]]
    return nn.Sequential(nn.Flatten(), *layers, nn.ReLU(), nn.Linear(16, classes))
"""
QUICK = "--eps 0.1 --limit 20 --draws 2 --executor inline --device cpu --affinity none".split()


@pytest.fixture(autouse=True)
def _in_a_folder_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {"defense.py": DEFENSE, "attack.py": ATTACK, "net.py": NET}.items():
        (tmp_path / name).write_text(text)


def run(*arguments: str) -> int:
    return main(["run", *QUICK, *arguments])


def keys(out: str = "results") -> dict[tuple[str, str], str]:
    frame = pd.read_csv(f"{out}/results.csv")
    return {(row.defense, row.attack): row.key for row in frame.itertuples()}


def test_labels_settings_and_the_spec_that_repeats_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["--defense", "defense.py:Smoothed,defense.py:Smoothed@strong,erm", "--attack", "attack.py:Mine,fgsm"]
    settings = ["--set", "Smoothed.sigma=0.2", "--set", "defense.py:Smoothed@strong.sigma=0.3", "--set", "arch.depth=2"]
    assert run(*names, "--arch", "net.py:build", *settings, "--set", "erm.stages=[1]") == 0
    spec = tomllib.loads(Path("results/spec.toml").read_text())
    assert spec["defenses"] == ["Smoothed", "strong", "erm"]
    assert spec["attacks"] == ["Mine", "fgsm"]
    assert spec["files"]["strong"] == "defense.py:Smoothed"
    assert spec["set"]["strong"] == {"sigma": 0.3}
    methods = pd.read_csv("results/methods.csv").set_index("label")
    assert '"sigma": 0.2' in methods.params["Smoothed"]
    assert '"sigma": 0.3' in methods.params["strong"]
    assert methods.name["strong"] == "Smoothed"
    assert methods.distribution["strong"] == "file"
    assert set(pd.read_csv("results/models.csv").architecture) == {"build"}
    capsys.readouterr()
    assert main(["run", "--spec", "results/spec.toml", "--executor", "inline", "--out", "again"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert keys("again") == keys()
    # A part of it, by labels.
    assert main(["run", "--spec", "results/spec.toml", "--defense", "strong", "--executor", "inline"]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_spec_names_files_beside_it_or_where_it_is_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    text = 'defenses = ["own.py:Smoothed@one", "defense.py:Smoothed@two"]\nattacks = ["fgsm"]\n[set.one]\nsigma = 0.4\n'
    (tmp_path / "sub" / "spec.toml").write_text(text)
    (tmp_path / "sub" / "own.py").write_text(DEFENSE)
    assert run("--spec", "sub/spec.toml") == 0
    table = tomllib.loads(Path("results/spec.toml").read_text())["files"]
    assert table == {"one": "sub/own.py:Smoothed", "two": "defense.py:Smoothed"}


def test_a_changed_file_has_other_keys_and_only_its_cells_run(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--defense", "defense.py:Smoothed,erm", "--attack", "fgsm", "--set", "erm.stages=[1]"]
    assert run(*options) == 0
    before = keys()
    Path("moved").mkdir()
    Path("defense.py").rename("moved/other.py")
    capsys.readouterr()
    assert run("--defense", "moved/other.py:Smoothed,erm", *options[2:]) == 0
    assert "nothing to do" in capsys.readouterr().out  # neither path nor name is in keys
    Path("defense.py").write_text(f"{DEFENSE}\n# changed\n")
    assert run(*options) == 0
    assert "4 tasks run" in capsys.readouterr().out
    after = keys()
    assert before["erm", "fgsm"] == after["erm", "fgsm"]
    assert before["Smoothed", "none"] != after["Smoothed", "none"]


def test_a_file_that_fails_in_a_task_fails_its_cells_alone(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--defense", "defense.py:Failing,defense.py:Smoothed", "--attack", "attack.py:Mine"]
    assert run(*options) == 1
    assert "defense.py, line 20, in fit: SystemExit: 0" in capsys.readouterr().err
    frame = pd.read_csv("results/results.csv").set_index(["defense", "attack"])
    assert frame.accuracy[("Smoothed", "Mine")] > 0
    assert frame["flags"][("Failing", "Mine")].startswith("failed")


BROKEN = """
import torch
from advbench.attacks import Attack
from advbench.models import InputNoise
from advbench.training import ErmLoss, Wrapper
from torch import nn

class Fit(ErmLoss):
    def fit(self, module, data, context=None):
        return {}["k"]

class Late(ErmLoss):
    def loss(self, clf, x, y, count):
        return super().loss(clf, x.view(3, -1), y, count)

class Grain(InputNoise):
    def change(self, x):
        return x.repeat(2, 1, 1, 1)

class Repeated(ErmLoss):
    def noise(self):
        return Grain()

class Steps(Attack):
    def run(self, clf, x, goal, threat, generator):
        raise ValueError("no step")

class Net(nn.Module):
    def forward(self, x):
        return x.view(3, 7)

def build(channels, height, width, classes):
    return Net()
"""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--defense broken.py:Fit --attack fgsm", "broken.py, line 10, in fit: KeyError: 'k'"),
        ("--defense broken.py:Late --attack fgsm", "broken.py, line 14, in loss: RuntimeError: "),
        ("--defense broken.py:Repeated --attack fgsm", "Grain.change: expected images of the dtype, batch size"),
        ("--defense erm --set erm.stages=[1] --attack broken.py:Steps", "line 26, in run: ValueError: no step"),
        ("--defense erm --arch broken.py:build --attack fgsm", "line 30, in forward: the model raised RuntimeError"),
    ],
)
def test_an_error_in_a_file_is_one_line_that_names_it(
    options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken.py").write_text(BROKEN)
    assert run(*options.split()) == 1
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_attacks_are_made_of_attacks_in_files() -> None:
    assert run("--defense", "erm", "--attack", "worst_case", "--set", 'worst_case.attacks=["attack.py:Mine","fgsm"]',
               "--set", "erm.stages=[1]") == 0  # fmt: skip
    before = keys()
    Path("attack.py").write_text(f"{ATTACK}\n# changed\n")
    assert run("--defense", "erm", "--attack", "worst_case", "--set", 'worst_case.attacks=["attack.py:Mine","fgsm"]',
               "--set", "erm.stages=[1]") == 0  # fmt: skip
    assert before["erm", "worst_case"] != keys()["erm", "worst_case"]


def test_a_report_needs_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("--defense", "defense.py:Smoothed", "--attack", "attack.py:Mine", "--arch", "net.py:build") == 0
    before = {path.name: path.read_bytes() for path in Path("results").iterdir() if path.is_file()}
    for name in ("defense.py", "attack.py", "net.py"):
        Path(name).unlink()
    monkeypatch.setattr(files, "_imported_package", lambda digest: pytest.fail("imported"))
    assert main(["report", "results"]) == 0
    assert {path.name: path.read_bytes() for path in Path("results").iterdir() if path.is_file()} == before


def test_workers_get_what_was_read_when_the_run_was_planned() -> None:
    names = {"defenses": ["defense.py:Smoothed"], "attacks": ["attack.py:Mine"], "architecture": "net.py:build"}
    execution = Execution("store", executor="local", workers=1, device="cpu")
    plan = prepare(execution.placed(make_spec({**names, "eps": [0.1], "limit": 20, "draws": 2})))
    for name in ("defense.py", "attack.py", "net.py"):
        Path(name).write_text("raise ValueError('changed')")
    store, runtime = execution.open_store(), execution.runtime("digits", 1)
    waiting = outstanding(plan, store)
    with Display(plan.tasks, waiting) as display:
        outcome = carry_out(plan, waiting, store, lambda: execution.start(runtime), display)
    assert not outcome.failed


BAD = {
    "two of one name": (["--defense", "defense.py:Smoothed,./defense.py:Smoothed"], "label 'Smoothed': expected one"),
    "a registered label": (["--defense", "defense.py:Smoothed@erm"], "label 'erm'.*use defense.py:Smoothed@LABEL"),
    "no label": (["--defense", "defense.py:Smoothed@"], "expected path/to/my.py:NAME"),
    "a file alone": (["--arch", "net.py"], "architecture 'net.py': .*; write net.py:NAME"),
    "typo": (["--defense", "defense.py:Smothed"], "unknown defense in defense.py 'Smothed'.* did you mean 'Smoothed'"),
    "another kind": (
        ["--defense", "attack.py:Mine"],
        "attack.py: Mine: expected a subclass of .*Defense, got a class of Attack",
    ),
    "setting": (["--set", "Smoothed.sgma=1"], "defense 'Smoothed': unknown hyperparameter of Smoothed.*'sigma'"),
    "setting of the net": (["--set", "arch.depth=2"], "unknown hyperparameter of architecture small_cnn 'depth'"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--attack", "fgsm", *([] if "--defense" in options else ["--defense", "defense.py:Smoothed"]), *options]
    assert run(*given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert not Path("results").exists()


def test_a_file_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "defense.py:Smoothed"]) == 0
    out = capsys.readouterr().out
    assert "Noise on the images." in out
    assert "sigma = 0.1  (float)" in out


def test_a_run_whose_net_is_in_a_file_can_be_audited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    run = ["run", "--arch", "net.py:build", "--defense", "erm", "--attack", "fgsm", "--eps", "0.1", "--limit", "10"]
    assert main([*run, "--set", "erm.stages=1"]) == 0
    capsys.readouterr()
    assert main(["audit", "--out", "results"]) in (0, 1)
    assert "valuation of erm, seed 0" in capsys.readouterr().out
