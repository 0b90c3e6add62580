"""A defense that wraps any other, written once in a file and run with several settings."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

import advbench
from advbench.cli.app import main
from advbench.errors import InputError
from advbench.grid.spec import make_spec, resolve
from advbench.models import GaussianNoise, GaussianPosterior, Noise
from advbench.testing import DefenseConformance, same_weights, small_data, small_net
from advbench.training import Defense, TrainContext, Wrapper

RESIZING = '''
import torch
import torch.nn.functional as F
from advbench.models import InputNoise
from advbench.training import Field, Wrapper, WrapperParams

class Resize(InputNoise):
    def __init__(self, least):
        self.least = least

    def change(self, x):
        size = int(torch.randint(self.least, x.shape[-1] + 1, ()))
        top, left = torch.randint(0, x.shape[-1] - size + 1, (2,)).tolist()
        small = F.interpolate(x, size=(size, size), mode="bilinear")
        return F.pad(small, (left, x.shape[-1] - size - left, top, x.shape[-2] - size - top))

class RandomResizing(Wrapper):
    """Images shrunk to a random size and padded (Xie et al. 2018)."""

    class Params(WrapperParams):
        least: int = Field(default=7, ge=1, description="smallest size, in pixels")

    def noise(self):
        return Resize(self.params.least)
'''


class Noisy(Wrapper):
    def noise(self) -> Noise:
        return GaussianNoise(0.1, 0.0)


class TestWrapper(DefenseConformance):
    @pytest.fixture
    def defense(self, monkeypatch: pytest.MonkeyPatch) -> Defense:
        erm = type(advbench.get_defense("erm"))
        monkeypatch.setattr(erm.Params.model_fields["stages"], "default", (1,))
        erm.Params.model_rebuild(force=True)
        return Noisy()


def test_it_has_the_weights_of_what_it_wraps() -> None:
    data = small_data()
    for name in ("erm", "bnn"):
        inner = advbench.get_defense(name, stages=(1,)).fit(small_net(), data)
        clf = Noisy(init_from=name).fit(small_net(), data, TrainContext(init=inner))
        assert same_weights(clf, inner)
        assert clf.stochastic
    assert isinstance(clf.posterior, GaussianPosterior)


def test_what_has_noise_already_is_refused() -> None:
    inner = advbench.get_defense("rse", stages=(1,)).fit(small_net(), small_data())
    with pytest.raises(
        InputError, match=r"init_from: expected a defense without noise of its own, got rse, which contains"
    ):
        Noisy(init_from="rse").fit(small_net(), small_data(), TrainContext(init=inner))


def test_a_wrapper_in_a_file_with_two_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("resizing.py").write_text(RESIZING)
    names = "erm,resizing.py:RandomResizing,resizing.py:RandomResizing@small,resizing.py:RandomResizing@bayes"
    settings = ["--set", "erm.stages=[2]", "--set", "bnn.stages=[2]", "--set", "small.least=5"]
    options = "--attack fgsm --eps 0.1 --limit 40 --draws 4 --executor inline --device cpu --affinity none".split()
    assert main(["run", "--defense", names, *settings, "--set", "bayes.init_from=bnn", *options]) == 0
    models = pd.read_csv("results/models.csv").set_index("defense")
    assert models.posterior.to_dict() == {
        "erm": "point", "RandomResizing": "point", "small": "point", "bayes": "gaussian"
    }  # fmt: skip
    results = pd.read_csv("results/results.csv").set_index(["defense", "attack"])
    accuracy = results.accuracy[:, "none"]
    assert accuracy["small"] < accuracy["RandomResizing"] <= accuracy["erm"] + 0.1
    assert (results.draws[["RandomResizing", "small", "bayes"]] == 4).all()
    assert torch.isfinite(torch.tensor(results.accuracy.to_numpy())).all()


def test_a_defense_with_noise_is_refused_before_it_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("resizing.py").write_text(RESIZING)
    for inner in ("mc_dropout", "rse"):
        settings = {"RandomResizing": {"init_from": inner}}
        values = {"defenses": ["resizing.py:RandomResizing"], "attacks": ["none"], "set": settings}
        with pytest.raises(InputError, match=f"init_from of 'RandomResizing': .* got {inner}, which contains noise"):
            resolve(make_spec(values))
