"""What newcomers get wrong in defenses, attacks and nets of their own: one line each that says what to write."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advbench.cli.app import main
from advbench.errors import PluginError
from advbench.registry import registry
from advbench.testing import small_data, small_net
from advbench.training import ErmLoss, TrainContext, TrainState

QUICK = "--eps 0.1 --limit 20 --draws 2 --executor inline --device cpu --affinity none".split()
DEFENSES = """
import torch
import torch.nn.functional as F
from torch import nn

from advbench.attacks import Attack
from advbench.models import Classifier, InputNoise
from advbench.training import Defense, ErmLoss, GradientDefense, LangevinChains, Wrapper

class Shift(InputNoise):
    def change(self, x):
        return x + 0.1 * torch.rand(())

"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def lines_of(capsys: pytest.CaptureFixture[str], text: str, *arguments: str) -> tuple[int, str]:
    """Exit code and messages of a command on the file `own.py`."""
    Path("own.py").write_text(DEFENSES + text)
    capsys.readouterr()
    code = main(list(arguments))
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, err


def method(base: str, name: str, parameters: str, result: str) -> str:
    return f"class Mine({base}):\n    def {name}({parameters}):\n        return {result}\n"


TERM = "F.cross_entropy(clf(x), y"
CHAIN = "F.cross_entropy(clf.at(draw, x), y"
NOISE = r"own.py, line 15, Mine.noise: expected a Noise, .*, got {}; write: return Shift\(\.\.\.\)"
LOSS = r"own.py, line 15, Mine.loss: expected {}"


@pytest.mark.parametrize(
    ("base", "name", "parameters", "result", "message"),
    [
        ("Wrapper", "noise", "self", "None", NOISE.format("None")),
        ("Wrapper", "noise", "self", "torch.ones(2)", NOISE.format("an object of type Tensor")),
        ("ErmLoss", "noise", "self", "torch.ones(2)", NOISE.format("an object of type Tensor")),
        ("ErmLoss", "posterior", "self, module", "None", r"Mine.posterior: expected a Posterior, got None; write: "),
        ("ErmLoss", "perturb", "self, clf, x, y, generator", "None", r"Mine.perturb: expected a tensor of \d+ images"),
        *(
            ("GradientDefense", "loss", "self, clf, x, y, count", result, LOSS.format(message))
            for result, message in (
                (f"{TERM})", r"terms by name, and logits, got a tensor of shape \(\); write: return"),
                ("None", "terms by name, and logits, got None; write: return"),
                (f"({TERM}), clf(x))", "terms by name, and logits, got a tuple of a tensor of shape"),
                (f"({{'ce': {TERM}, reduction='none')}}, clf(x))", r"a scalar tensor as term 'ce', got .*\.mean\(\)"),
                (f"({{'ce': {TERM}).item()}}, clf(x))", r"a scalar tensor as term 'ce', got .* float; .*\.item\(\)"),
                (f"({{'ce': {TERM}).detach()}}, clf(x))", "terms that depend on the weights, got constants; "),
                (f"({{'ce': {TERM})}}, None)", r"logits of shape \(\d+, classes\), got None; write: return"),
            )
        ),
        *(
            ("LangevinChains", "loss", "self, clf, draw, x, y", result, LOSS.format(message))
            for result, message in (
                ("None", "a scalar tensor, and logits, got None; write: return loss, logits"),
                (f"({{'ce': {CHAIN})}}, clf.at(draw, x))", "a scalar tensor, and logits, got a tuple of an object"),
                (
                    f"({CHAIN}, reduction='none'), clf.at(draw, x))",
                    r"a scalar tensor, got .* shape \(\d+,\); take the",
                ),
                (
                    f"({CHAIN}).detach(), clf.at(draw, x))",
                    "a loss that depends on the chain's weights, got a constant; ",
                ),
                (f"({TERM}), clf(x))", r"a loss that depends on the chain's weights, got a constant; .*clf\.at"),
                (f"({CHAIN}), None)", r"logits of shape \(images, classes\), got None; write: return loss, logits"),
            )
        ),
        *(
            (base, name, parameters, result, rf"own.py, line 15, Mine.{name}: expected {message}")
            for base, name, parameters in (
                ("LangevinChains", "move", "self, state, chain, gradient, temperature, generator"),
                ("ErmLoss", "update", "self, state, x, y, count, context"),
            )
            for result, message in (
                ("None", "scalars by name, got None; write: return"),
                ("{'loss': 0.5}", r"a scalar tensor as 'loss', got an object of type float; .*\.item\(\)"),
                (
                    "{'loss': torch.ones(3)}",
                    r"a scalar tensor as 'loss', got .* shape \(3,\); return its \.mean\(\)",
                ),
            )
        ),
        (
            "ErmLoss",
            "begin",
            "self, module, steps, count, context",
            "module",
            "expected a TrainState, got an",
        ),
        (
            "ErmLoss",
            "finish",
            "self, state",
            "state",
            "expected a Classifier, got an object of type TrainS",
        ),
    ],
)
def test_what_a_method_returns_is_checked(
    base: str, name: str, parameters: str, result: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own.py").write_text(DEFENSES + method(base, name, parameters, result))
    chain = {"burn_in": 0, "interval": 1} if base == "LangevinChains" else {}
    mine = registry().load("defense", "own.py:Mine")(**({} if base == "Wrapper" else {"stages": 1, **chain}))
    with pytest.raises(PluginError, match=message):
        mine.fit(small_net(), small_data())


def test_an_update_may_have_nothing_to_show() -> None:
    class Quiet(ErmLoss):
        def update(self, *args: Any) -> dict[str, Tensor]:
            super().update(*args)
            return {}

    loud, quiet = (cls(stages=1).fit(small_net(), small_data()) for cls in (ErmLoss, Quiet))
    assert all(map(torch.equal, loud.state_dict().values(), quiet.state_dict().values()))


def test_what_finish_returns_is_checked_before_a_training_is_watched() -> None:
    class Forgetful(ErmLoss):
        def finish(self, state: TrainState) -> Any:
            return None

    with pytest.raises(PluginError, match=r"Forgetful.finish: expected a Classifier, got None"):
        Forgetful(stages=1).fit(small_net(), small_data(), TrainContext(watch=lambda step, clf: None))


def test_other_cells_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    text = method("Wrapper", "noise", "self", "None")
    options = ["--defense", "erm,own.py:Mine", "--set", "erm.stages=1", "--attack", "fgsm", *QUICK]
    code, err = lines_of(capsys, text, "run", *options)
    assert code == 1
    assert re.search(NOISE.format("None"), err), err
    assert "erm," in Path("results/results.csv").read_text()


@pytest.mark.parametrize(
    ("base", "name", "parameters", "message"),
    [
        (
            "Defense",
            "fit",
            "self, module, data",
            r"own.py, line 15, Mine.fit: expected the parameters \(self, module, data, context=None\), got \(self, "
            r"module, data\); write: def fit\(self, module, data, context=None\)$",
        ),
        ("Wrapper", "noise", "", r"Mine.noise: expected the parameters \(self\), got \(\); write: def noise\(self\)$"),
        ("ErmLoss", "loss", "self, clf, x, y", r"expected the parameters \(self, clf, x, y, count\), got"),
        ("Attack", "run", "self, clf, x, goal, threat", r"got \(self, clf, x, goal, threat\); write: def run\(self, "),
        ("Attack", "run", "self, clf, x, goal, threat, generator, draws", r"got \(self, .*, draws\); write: def run"),
    ],
)
def test_methods_that_cannot_be_called_are_refused_before_the_run(
    base: str, name: str, parameters: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--defense", "erm", "--attack", "own.py:Mine"]
    if base != "Attack":
        chosen = ["--defense", "own.py:Mine", "--attack", "fgsm"]
    code, err = lines_of(capsys, method(base, name, parameters, "None"), "run", *chosen, *QUICK)
    assert code == 2
    assert err.count("\n") == 1
    assert re.search(message, err.strip()), err


def test_further_parameters_with_defaults_and_other_names_are_fine(capsys: pytest.CaptureFixture[str]) -> None:
    text = method("Attack", "run", "self, model, images, *rest, draws=3", "images")
    code, err = lines_of(capsys, text, "plan", "--defense", "erm", "--attack", "own.py:Mine", *QUICK)
    assert code == 0, err


def test_a_misspelt_loss_of_a_goal_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    text = method("Attack", "run", "self, clf, x, goal, threat, generator", "goal.loss('cee')(clf(x), goal.rows)")
    options = ["--defense", "erm", "--set", "erm.stages=1", "--attack", "own.py:Mine,fgsm", *QUICK]
    code, err = lines_of(capsys, text, "run", *options)
    assert code == 1
    assert re.search("file own.py, line 16: unknown loss 'cee': expected one of ce, dlr, margin; did you mean", err)
    assert "fgsm," in Path("results/results.csv").read_text()


NET = """
def build(channels, height, width, classes, width_of_layer: int = 8):
    hidden = nn.Linear(channels * height * width, width_of_layer)
    return nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(width_of_layer, classes))

def plain(channels, height, width, classes):
    return build(channels, height, width, classes)
"""


def test_a_parameter_of_the_net_of_one_label_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--arch", "own.py:plain", "--defense", "erm@small,erm", "--set", "erm@small.arch=own.py:build"]
    asked = ["--set", "arch.width_of_layer=4", "--attack", "fgsm", *QUICK]
    code, err = lines_of(capsys, NET, "plan", *options, *asked)
    assert code == 2
    found = "unknown hyperparameter of architecture plain 'width_of_layer': .*; for the net of erm@small: --set "
    assert re.search(found + r"erm@small\.arch\.width_of_layer=4\n$", err), err
    code, err = lines_of(capsys, NET, "plan", *options, "--set", "arch.nosuch=4", "--attack", "fgsm", *QUICK)
    assert code == 2
    assert "for the net of" not in err


def test_weights_of_another_net_name_the_net_with_its_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)).state_dict(), "net.pt")
    options = ["--arch", "own.py:build", "--set", "arch.width_of_layer=4", "--defense", "pretrained"]
    options += ["--set", "pretrained.weights=net.pt", "--attack", "fgsm", *QUICK]
    code, err = lines_of(capsys, NET, "run", *options)
    assert code != 0
    assert re.search(
        r"net.pt: expected the weights of the net own.py:build \(width_of_layer=4\), got 3 of another", err
    )
    assert "its hyperparameters are set by --set LABEL.arch.NAME=VALUE" in err


def test_a_missing_value_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    text = "from advbench.training import Field, Files, Params as Base\nclass FromFile(Defense):\n"
    text += "    class Params(Base):\n        weights: Files = Field(description='weights')\n"
    text += "    def fit(self, module, data, context=None):\n        return Classifier(module)\n"
    code, err = lines_of(capsys, text, "plan", "--defense", "own.py:FromFile", "--attack", "fgsm", *QUICK)
    assert code == 2
    message = "hyperparameter 'weights' of FromFile: expected a value, got none; use --set FromFile.weights=..."
    assert err == f"error: defense 'FromFile': {message}\n"
