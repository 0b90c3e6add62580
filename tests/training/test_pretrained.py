"""Weights from files: nets, ensembles and Gaussian posteriors that are exactly those; and files that do not fit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import Harmful
from safetensors.torch import save_file
from torch import Tensor, nn

import advbench
from advbench.cli.app import main
from advbench.data.datasets import limited, load_dataset
from advbench.errors import InputError
from advbench.grid.spec import make_spec, parse_settings, pinned, published, resolve
from advbench.models import Classifier, Normalize
from advbench.models.nets import small_cnn
from advbench.models.saving import export_classifier, load_classifier
from advbench.progress import Progress
from advbench.testing import small_data, small_net
from advbench.training import TrainContext, gaussian


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def net(seed: int) -> nn.Sequential:
    """A net of its own weights and running statistics."""
    made = small_net()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        made.get_buffer("1.running_mean").normal_(generator=generator)
    return made.eval()


def saved(state: Any, name: str = "net.pt") -> str:
    if name.endswith(".safetensors"):
        save_file({key: tensor.clone() for key, tensor in state.items()}, name)
    else:
        torch.save(state, name)
    return name


def read(weights: Any, module: nn.Module | None = None, **params: Any) -> Classifier:
    return advbench.get_defense("pretrained", weights=weights, **params).fit(module or small_net(), small_data())


IMAGES = small_data().batch(slice(8))[0]


# what is read


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda state: {"model": state},
        lambda state: {"model_state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
        lambda state: {name: tensor for name, tensor in state.items() if "num_batches" not in name},
        lambda state: {name: t.double() if t.is_floating_point() else t for name, t in state.items()},
    ],
)
def test_state_dicts_as_people_save_them_give_the_net_itself(wrapped: Callable[[Any], Any]) -> None:
    clf = read(saved(wrapped(net(1).state_dict())))
    assert not clf.stochastic
    assert torch.equal(clf(IMAGES), net(1)(IMAGES))


def test_safetensors_give_it_as_well_and_the_callers_module_stays() -> None:
    module = small_net()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    seen: list[Progress] = []
    defense = advbench.get_defense("pretrained", weights=saved(net(1).state_dict(), "net.safetensors"))
    clf = defense.fit(module, small_data(), TrainContext(progress=seen.append))
    assert torch.equal(clf(IMAGES), net(1)(IMAGES))
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    x, y = small_data().batch(slice(None))
    assert seen[-1].values["train accuracy"] == pytest.approx(float((net(1)(x).argmax(1) == y).float().mean()))


def test_several_files_are_an_ensemble_of_exactly_these_nets() -> None:
    clf = read([saved(net(k).state_dict(), f"net{k}.pt") for k in range(3)])
    assert clf.members == 3
    expected = torch.stack([net(k)(IMAGES) for k in range(3)])
    assert torch.equal(torch.stack([clf.at(clf.member(k), IMAGES) for k in range(3)]), expected)
    found = advbench.evaluate(clf, IMAGES, torch.zeros(8, dtype=torch.int64))
    torch.testing.assert_close(torch.as_tensor(found.mean_probs), expected.softmax(-1).mean(0), check_dtype=False)


def test_several_files_are_a_list_with_commas_or_a_pattern() -> None:
    for seed in range(3):
        saved(net(seed).state_dict(), f"member{seed}.pt")
    saved(net(9).state_dict(), "odd,name.pt")
    given = {
        "list": ["member0.pt", "member1.pt", "member2.pt"],
        "commas": "member0.pt, member1.pt,member2.pt",
        "pattern": "member*.pt",
    }
    found = {}
    for name, weights in given.items():
        values = {"defenses": ["pretrained"], "attacks": ["none"], "set": {"pretrained": {"weights": weights}}}
        spec = pinned(make_spec(values))
        assert len(spec.set["pretrained"]["weights"]) == 3
        found[name] = resolve(spec)[0][0].params["weights"]
        assert found[name] == list(advbench.get_defense("pretrained", weights=weights).params.weights)
    assert found["list"] == found["commas"] == found["pattern"]
    assert len(advbench.get_defense("pretrained", weights="odd,name.pt").params.weights) == 1
    with pytest.raises(InputError, match=r"--set pretrained.weights: expected one value, got 'a.pt' and 'b.pt'; write"):
        parse_settings(["pretrained.weights=a.pt", "pretrained.weights=b.pt"])


def test_means_and_deviations_by_name_are_a_gaussian_posterior() -> None:
    deviations = {name: torch.rand(p.shape) * 0.1 for name, p in net(1).named_parameters()}
    deviations["1.bias"] = torch.zeros(4)  # a weight that is fixed
    clf = read(saved(net(1).state_dict()), std=saved(deviations, "std.safetensors"))
    posterior = gaussian(clf)
    means, stds = posterior.layout.views(posterior.mean), posterior.layout.views(posterior.log_std.exp())
    for name, parameter in net(1).named_parameters():
        torch.testing.assert_close(means[name], parameter.detach())
        torch.testing.assert_close(stds[name], deviations[name])
    draw = clf.draw(3)
    assert torch.equal(draw.weights["1.bias"], net(1).get_parameter("1.bias"))
    moved = net(1)
    moved.load_state_dict(dict(draw.weights), strict=False)
    assert torch.equal(clf.at(draw, IMAGES), moved(IMAGES))
    tensors, values = export_classifier(clf)
    assert torch.equal(load_classifier(small_net(), tensors, values).at(draw, IMAGES), moved(IMAGES))


def test_posteriors_of_several_files_are_their_mixture() -> None:
    deviations = {name: torch.full(p.shape, 1e-6) for name, p in net(1).named_parameters()}
    other = {name: 2 * tensor for name, tensor in deviations.items()}
    weights = [saved(net(k).state_dict(), f"net{k}.pt") for k in range(2)]
    clf = read(weights, std=[saved(deviations, "std0.pt"), saved(other, "std1.pt")])
    nets = torch.stack([net(k)(IMAGES) for k in range(2)])
    near = [int((nets - clf(IMAGES)).abs().amax((1, 2)).argmin()) for _ in range(40)]
    assert 8 < sum(near) < 32
    assert clf.members is None


@pytest.mark.parametrize(("params", "kind"), [({"first_std": 0.02}, "gaussian"), ({"dropout": 0.1}, "dropout")])
def test_noise_comes_on_top_of_nets_and_ensembles(params: dict[str, Any], kind: str) -> None:
    for weights in (saved(net(1).state_dict()), [saved(net(k).state_dict(), f"net{k}.pt") for k in range(2)]):
        clf = read(weights, **params)
        assert clf.stochastic
        assert export_classifier(clf)[1]["noise"]["kind"] == kind
        with torch.no_grad():
            draws = clf.draws(IMAGES, 400).mean(0)
            exact = net(1)(IMAGES) if isinstance(weights, str) else (net(0)(IMAGES) + net(1)(IMAGES)) / 2
        assert float((draws - exact).abs().mean()) < 0.15


# images


def test_a_net_gets_images_as_they_are_or_normalised_as_it_was_trained() -> None:
    data = small_data()
    module = nn.Sequential(Normalize(torch.tensor([0.3]), torch.tensor([0.2])), small_net())  # as advbench builds nets
    weights = saved(net(1).state_dict())
    plain = advbench.get_defense("pretrained", weights=weights).fit(module, data)
    assert torch.equal(plain(IMAGES), net(1)(IMAGES))
    normalised = advbench.get_defense("pretrained", weights=weights, channel_mean=0.5, channel_std=0.25)
    torch.testing.assert_close(normalised.fit(module, data)(IMAGES), net(1)((IMAGES - 0.5) / 0.25))
    trained = advbench.get_defense("erm", stages=(1,)).fit(module, data)
    own = advbench.get_defense("pretrained", weights=saved(trained.module.state_dict(), "own.pt"))
    assert torch.equal(own.fit(module, data)(IMAGES), trained(IMAGES))
    for weights, into in (("own.pt", module), ("net.pt", small_net())):
        with pytest.raises(InputError, match=r"channel_mean or channel_std of Pretrained: expected none \("):
            read(weights, into, channel_mean=0.5)


# randomness is declared


class Noisy(nn.Sequential):
    """A net that adds noise in any mode."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1 * torch.randn_like(x))  # type: ignore[no-any-return]


def test_a_net_that_is_random_by_itself_must_be_declared_and_then_is() -> None:
    weights = saved(net(1).state_dict())
    module = Noisy(*small_net())
    with pytest.raises(
        InputError, match="unless declared random, got passes that differ; declare it: --set pretrained"
    ):
        read(weights, module)
    clf = read(weights, module, random=True)
    assert clf.stochastic
    assert not torch.equal(*clf.draws(IMAGES, 2))
    assert torch.equal(clf.at(clf.draw(1), IMAGES), clf.at(clf.draw(1), IMAGES))
    several = read([weights, saved(net(2).state_dict(), "other.pt")], module, random=True)
    assert several.members is None
    with pytest.raises(InputError, match=r"equal passes; omit.*dropout layers are off.*dropout=RATE"):
        read(weights, small_net(), random=True)


# what is refused


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"5.bias": None, "5.weight": None}, r"2 missing: 5\.weight, 5\.bias$"),
        ({f"more.{k}": torch.ones(1) for k in range(9)}, r"9 unexpected: more\.0, more\.1, more\.2, \.\.\.$"),
        ({"5.bias": torch.ones(9)}, r"1 of another shape: 5\.bias of \(9,\) for \(3,\)$"),
        ({"5.bias": torch.ones(3, dtype=torch.int64)}, r"1 of another type: 5\.bias of torch\.int64$"),
        ({"1.running_mean": None, "x": torch.ones(1)}, r"1 missing: 1\.running_mean; 1 unexpected: x$"),
    ],
)
def test_weights_of_another_net_are_one_line_that_names_the_first_few(change: dict[str, Any], reason: str) -> None:
    state = {**net(1).state_dict(), **change}
    saved({name: tensor for name, tensor in state.items() if tensor is not None})
    expected = f"net.pt: expected the weights of the net, got {reason.rstrip(chr(36))}; name the net of these weights: "
    with pytest.raises(InputError, match=expected):
        read("net.pt")


def test_a_net_of_other_classes_is_refused() -> None:
    with pytest.raises(InputError, match="expected 3 logits, one per class, got 5"):
        read(saved(small_net(5).state_dict()), small_net(5))


def test_files_that_hold_something_else_are_one_line_and_nothing_is_unpickled(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    cases: dict[str, tuple[Any, str]] = {
        "harmful": (Harmful(str(trap)), "got a file that would run code when unpickled"),
        "whole": (net(1), r"got a file that would run code when unpickled; save net.state_dict\(\), not the net"),
        "inside": ({"state_dict": net(1)}, "got a file that would run code when unpickled"),
        "table": ({"weights": torch.ones(3), "epoch": 3}, "got 'epoch' of type int among weights, epoch"),
        "empty": ({}, "got none"),
        "tensor": (torch.ones(3), "got a Tensor"),
        "list": ([torch.ones(3)], "got a list"),
    }
    for name, (content, reason) in cases.items():
        torch.save(content, f"{name}.pt")
        with pytest.raises(InputError, match=rf"{name}\.pt: expected tensors by name, .*{reason}"):
            read(f"{name}.pt")
    assert not trap.exists()
    whole = Path(saved(net(1).state_dict(), "net.safetensors")).read_bytes()
    zipped = Path(saved(net(1).state_dict())).read_bytes()
    for number, raw in enumerate((b"", b"junk" * 99, whole[:-9], whole[:60], zipped[:-90], b"\x80\x02]q\x00(e.")):
        path = Path(f"cut{number}.pt")
        path.write_bytes(raw)
        with pytest.raises(InputError, match=rf"cut{number}\.pt: expected tensors by name"):
            read(str(path))


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({}, "weights of Pretrained: expected a file, or a list of files, got none; use --set pretrained"),
        ({"weight": "net.pt"}, r"unknown hyperparameter of Pretrained 'weight': .* did you mean 'weights'\?"),
        ({"weights": "nt.pt"}, r"file nt\.pt: .* no such file in .*; did you mean 'net\.pt'\?"),
        ({"weights": "none*.pt"}, r"files none\*\.pt: expected at least one that matches, got none"),
        ({"weights": "none.pt"}, r"file none\.pt: expected a file, got no such file in "),
        ({"weights": 3}, "hyperparameter 'weights.0' of Pretrained: expected a valid string, got 3"),
        ({"weights": ["net.pt", "net.pt"]}, "expected files with different content"),
        ({"weights": "net.pt", "std": ["net.pt", "net.pt"]}, "number of files in std of Pretrained: expected 1"),
        ({"weights": "net.pt", "random": True, "dropout": 0.1}, "expected one kind of noise, got dropout and random"),
        ({"weights": "net.pt", "channel_std": 0.0}, "channel_std of Pretrained: expected numbers > 0"),
    ],
)
def test_bad_hyperparameters_are_refused_at_once(params: dict[str, Any], reason: str) -> None:
    saved(net(1).state_dict())
    with pytest.raises(InputError, match=reason):
        advbench.get_defense("pretrained", **params)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"5.bias": -torch.ones(3)}, "standard deviation of 5.bias in .*: expected finite numbers >= 0"),
        ({"5.bias": None}, "1 missing: 5.bias; use 0 for deterministic weights"),
    ],
)
def test_deviations_that_are_none_are_refused(change: dict[str, Any], reason: str) -> None:
    deviations = {**{name: torch.ones(p.shape) for name, p in net(1).named_parameters()}, **change}
    saved({name: tensor for name, tensor in deviations.items() if tensor is not None}, "std.pt")
    with pytest.raises(InputError, match=reason):
        read(saved(net(1).state_dict()), std="std.pt")


def test_an_ensemble_of_nets_that_nobody_trains_is_refused() -> None:
    saved(net(1).state_dict())
    with pytest.raises(InputError, match="method of DeepEnsemble: expected a method that trains, got pretrained"):
        advbench.get_defense("deep_ensemble", method="pretrained", params={"weights": "net.pt"})


def test_a_deterministic_one_is_a_start_for_other_methods() -> None:
    base = read(saved(net(1).state_dict()))
    start = advbench.get_defense("pgd_at", init_from="pretrained", stages=(1,), lr=1e-12, steps=1)
    clf = start.fit(small_net(), small_data(), TrainContext(init=base))
    assert all(torch.allclose(p, net(1).get_parameter(n), atol=1e-9) for n, p in clf.module.named_parameters())


# runs


def digits_net(seed: int) -> nn.Module:
    """An own net, trained by nothing of advbench's."""
    x, y = load_dataset("digits").train.batch(slice(None))
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        made = small_cnn(1, 8, 8, 10)
        optimizer = torch.optim.SGD(made.parameters(), lr=0.1, momentum=0.9)
        for _ in range(4):
            for index in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(made(x[index]), y[index]).backward()
                optimizer.step()
    return made.eval()


RUN = ["--arch", "small_cnn", "--attack", "none", "--limit", "60", "--store", "store"]


def keys(spec: Any) -> list[Any]:
    return [choice.component for choice in resolve(make_spec(spec))[0]]


def test_keys_hold_the_content_and_no_path(tmp_path: Path) -> None:
    def spec(weights: str) -> dict[str, Any]:
        return {"defenses": ["pretrained"], "attacks": ["none"], "set": {"pretrained": {"weights": weights}}}

    saved(net(1).state_dict(), "a.pt")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "other.pt").write_bytes((tmp_path / "a.pt").read_bytes())
    one = keys(spec("a.pt"))
    assert one == keys(spec("b/other.pt")) == keys(spec(str(tmp_path / "a.pt")))
    assert "a.pt" not in repr(one)
    assert one != keys(spec(saved(net(2).state_dict(), "c.pt")))
    stated = pinned(make_spec(spec("a.pt")))
    assert stated.set["pretrained"]["weights"].startswith("a.pt#sha256:")
    assert published(stated, "it").set["pretrained"]["weights"] == one[0].params["weights"][0]
    with pytest.raises(InputError, match=r"spec.toml of x: file 'a\.pt': expected its SHA-256"):
        published(make_spec(spec("a.pt")), "spec.toml of x")


def test_an_own_trained_net_gets_its_row_from_an_empty_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nets = [digits_net(seed) for seed in range(2)]
    saved(nets[0].state_dict(), "mine.safetensors")
    saved({"state_dict": nets[1].state_dict()}, "mine.pt")
    settings = ["--set", "pretrained.weights=mine.safetensors", "--affinity", "none"]
    settings += ["--set", 'pretrained@two.weights=["mine.safetensors", "mine.pt"]']
    assert (
        main(
            ["run", "--defense", "pretrained,pretrained@two", *RUN, *settings, "--executor", "local", "--workers", "1"]
        )
        == 0
    )
    rows = [line for line in Path("results/results.csv").read_text().splitlines() if ",none," in line]
    x, y = limited(load_dataset("digits").test, 60).batch(slice(None))
    exact = [float((net(x).argmax(1) == y).float().mean()) for net in nets[:1]]
    exact.append(float((sum(net(x).softmax(1) for net in nets).argmax(1) == y).float().mean()))
    assert [float(row.split(",")[10]) for row in rows] == pytest.approx(exact)
    # What was computed is reported, published and checked without the files.
    for name in ("mine.safetensors", "mine.pt"):
        Path(name).rename(f"{name}.away")
    capsys.readouterr()
    assert main(["report", "results", "--store", "store"]) == 0
    assert (
        main(
            ["leaderboard", "submit", "results", "--store", "store", "--defense", "pretrained@two", "--out", "two.zip"]
        )
        == 0
    )
    board = tmp_path / "board"
    board.mkdir()
    for name in ("spec.toml", "data.json"):
        (board / name).write_bytes(Path("results", name).read_bytes())
    assert main(["leaderboard", "build", "board", "--store", "store"]) == 0
    assert main(["leaderboard", "check", "board"]) == 0
    text = (board / "spec.toml").read_text()
    assert "sha256:" in text
    assert "mine" not in text
    assert "The weights of `pretrained`, `pretrained@two` are in files" in (board / "README.md").read_text()
    # Cells are computed anew where the files are, under whatever name.
    rerun = ["leaderboard", "check", "board", "--rerun", "9", "--data-root", "root"]
    assert main(rerun) == 2
    assert "pretrained@two is without the files with its weights in root/weights" in capsys.readouterr().err
    Path("root/weights").mkdir(parents=True)
    Path("root/weights/renamed.bin").write_bytes(Path("mine.safetensors.away").read_bytes())
    assert main(rerun) == 0
    assert "1 cell recomputed, 1 of them equal to the last digit" in capsys.readouterr().out
    # A run that needs them says which is not there, or has changed; the rest goes on.
    again = ["run", "--spec", "results/spec.toml", "--store", "fresh", "--out", "again", "--executor", "inline"]
    Path("mine.safetensors.away").rename("mine.safetensors")
    saved(nets[0].state_dict(), "mine.pt")
    capsys.readouterr()
    assert main(again) == 1
    err = capsys.readouterr().err
    assert f"{tmp_path}/mine.pt: expected the content with SHA-256" in err
    assert "Traceback" not in err
    assert "evaluate pretrained on clean, seed 0: accuracy" in err


OWN = """
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self, inputs, classes, rate):
        super().__init__()
        self.rate, self.first, self.last = rate, nn.Linear(inputs, 40), nn.Linear(40, classes)

    def forward(self, x):
        return self.last(F.dropout(self.first(x.flatten(1)).relu(), self.rate, training=True))


def build(channels, height, width, classes, rate: float = 0.2):
    return Net(channels * height * width, classes, rate)
"""


def write_own() -> None:
    """Write the file of the net, and weights of it."""
    Path("my.py").write_text(OWN)
    made: dict[str, Any] = {}
    exec(OWN, made)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        saved(made["build"](1, 8, 8, 10).state_dict(), "mine.pt")


def test_a_random_net_in_a_file_of_ones_own_gets_its_row(capsys: pytest.CaptureFixture[str]) -> None:
    write_own()
    run = ["run", "--arch", "my.py:build", "--defense", "pretrained", *RUN[2:], "--set", "pretrained.weights=mine.pt"]
    assert main(run) == 1
    assert "declare it: --set pretrained.random=true" in capsys.readouterr().err
    assert main([*run, "--set", "pretrained.random=true", "--draws", "4"]) == 0
    row = Path("results/results.csv").read_text().splitlines()[1].split(",")
    assert row[:3] == ["digits", "build", "pretrained"]
    assert row[9] == "4"
    assert main([*run, "--set", "pretrained.random=true", "--set", "arch.rate=0.0"]) == 1
    assert "got equal passes; omit --set pretrained.random" in capsys.readouterr().err


def test_a_net_of_its_own_stands_beside_trained_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_own()
    run = ["run", "--defense", "pretrained,erm", *RUN[2:], "--set", "pretrained.weights=mine.pt"]
    run += ["--set", "pretrained.random=true", "--set", "erm.stages=1"]
    assert main([*run, "--arch", "my.py:build"]) == 1
    assert "train erm, seed 0: failed: net to train: expected a net that is det" in capsys.readouterr().err
    assert main([*run, "--set", "pretrained.arch=my.py:build"]) == 0
    rows = {line.split(",")[2]: line.split(",") for line in Path("results/results.csv").read_text().splitlines()}
    assert rows["pretrained"][1] == "pretrained.build"
    assert rows["erm"][1] == "small_cnn"
    # Reports and boards do not import the file.
    Path("my.py").write_text("raise ValueError('changed')")
    assert main(["report", "results", "--store", "store"]) == 0
    board = tmp_path / "board"
    shutil.copytree("results/files", board / "files")
    for name in ("spec.toml", "data.json"):
        (board / name).write_bytes(Path("results", name).read_bytes())
    assert main(["leaderboard", "build", "board", "--store", "store"]) == 0
    assert main(["leaderboard", "check", "board"]) == 0
    assert "my.py" not in (board / "spec.toml").read_text()
    capsys.readouterr()
    Path("own.py").write_text(OWN + BRINGS)
    with pytest.raises(InputError, match="net of defense 'Mine': expected its own, build"):
        resolve(make_spec({"defenses": ["own.py:Mine"], "attacks": ["none"], "set": {"Mine": {"arch": "fcnn1"}}}))


BRINGS = """
from advbench.training import Defense

class Mine(Defense):
    architecture = "build"

    def fit(self, module, data, context=None):
        raise NotImplementedError
"""


def test_what_starts_from_a_net_of_its_own_has_that_net() -> None:
    saved(digits_net(0).state_dict(), "mine.pt")
    settings = {"pretrained": {"weights": "mine.pt", "arch": "fcnn1"}, "pgd_at": {"init_from": "pretrained"}}
    values = {"defenses": ["pretrained", "pgd_at", "erm"], "attacks": ["none"], "set": settings}
    found = {choice.label: choice for choice in resolve(make_spec(values))[0]}
    assert {label: choice.architecture for label, choice in found.items()} == {
        "pretrained": "fcnn1",
        "pgd_at": "fcnn1",
        "erm": "small_cnn",
    }
    assert found["pgd_at"].net == found["pretrained"].net
