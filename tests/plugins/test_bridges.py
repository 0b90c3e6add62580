"""Bridges to other libraries; most tests need the extra `bridges` and run under tox -e bridges."""

from __future__ import annotations

import functools
import http.server
import importlib.metadata
import importlib.util
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
import torch
from conftest import Cli
from torch import Tensor, nn

import advbench
from advbench import Data, InputError, PluginError, Threat
from advbench.attacks.base import Attack
from advbench.attacks.craft import Earlier
from advbench.models.classifier import Classifier
from advbench.models.posterior import GaussianPosterior
from advbench.registry.optional import written_over
from advbench.testing import AttackConformance, small_data, small_net

HERE = importlib.util.find_spec("torchattacks") is not None
needs_libraries = pytest.mark.skipif(not HERE, reason="needs the extra 'bridges'")


def names() -> list[str]:
    if not HERE:
        return []
    import torchattacks

    return [name for name in torchattacks.__all__ if name not in ("MultiAttack", "LGV")]


class LibraryConformance(AttackConformance):
    """As the suite, but a library may fail on what it was not made for, and is named then."""

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_models_of_another_precision(self, attack: Attack, threat: Threat, dtype: torch.dtype, data: Data) -> None:
        with fails_by_name():
            super().test_models_of_another_precision(attack, threat, dtype, data)

    def test_tabular_images(self, attack: Attack, threat: Threat) -> None:
        with fails_by_name():
            super().test_tabular_images(attack, threat)


@contextmanager
def fails_by_name() -> Iterator[None]:
    """Let a failure pass that says in one line whose it is."""
    said = ""
    try:
        yield
    except PluginError as error:
        said = str(error)
    assert re.match(r"$|\S+( of \w+)? (failed: got|returned: expected)|the model", said), said
    assert "\n" not in said


@needs_libraries
class TestTorchattacks(LibraryConformance):
    classes = 4
    channels = 3

    @pytest.fixture(params=names())
    def attack(self, request: pytest.FixtureRequest) -> Attack:
        return advbench.get_attack(f"torchattacks:{request.param}")


@needs_libraries
class TestAutoAttack(LibraryConformance):
    classes = 5

    @pytest.fixture
    def attack(self, monkeypatch: pytest.MonkeyPatch) -> Attack:
        """The package's settings but fewer steps and queries."""
        import pyautoattack

        class Shorter(pyautoattack.AutoAttack):
            def __init__(self, *args: Any, **values: Any) -> None:
                super().__init__(*args, **values)
                self.apgd.n_iter = self.apgd.n_iter_orig = self.apgd_targeted.n_iter = self.fab.n_iter = 5
                self.apgd_targeted.n_iter_orig = 5
                self.square.n_queries = 20

        monkeypatch.setattr(pyautoattack, "AutoAttack", Shorter)
        return advbench.get_attack("autoattack")


class Noisy(nn.Module):
    """Right with a probability whatever the input, for each image apart; labels are all 0."""

    def __init__(self, right: float) -> None:
        super().__init__()
        self.right = right
        self.slope = nn.Parameter(torch.tensor(1e-3))

    def forward(self, x: Tensor) -> Tensor:
        wrong = torch.rand(len(x)) > self.right
        logits = torch.zeros(len(x), 5)
        logits[torch.arange(len(x)), torch.where(wrong, 1, 0)] = 1.0
        return logits + self.slope * x.flatten(1)[:, :5]


def linear(classes: int) -> Classifier:
    generator = torch.Generator().manual_seed(classes)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, classes))
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(classes, 48, generator=generator))
    return Classifier(net).requires_grad_(False)


def images(count: int = 12) -> Tensor:
    return 0.3 + 0.4 * torch.rand((count, 3, 4, 4), generator=torch.Generator().manual_seed(0))


@needs_libraries
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_autoattack_breaks_what_the_package_breaks(norm: str) -> None:
    import pyautoattack

    net = small_net(5, 3).eval()
    clf, (x, _) = Classifier(net).requires_grad_(False), small_data(24, 5, 3).batch(slice(24))
    y = clf(x).argmax(1)
    eps = {"linf": 0.02, "l2": 0.1}[norm]
    suite = pyautoattack.AutoAttack(clf, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, seed=0)
    suite.apgd_targeted.n_target_classes = suite.fab.n_target_classes = 4
    theirs, _ = suite.run_standard_evaluation(x, y, batch_size=24)
    ours = advbench.get_attack("autoattack")(clf, x, y, Threat(norm, eps))
    broken = clf(theirs).argmax(1) != y
    assert 0 < int(broken.sum()) < 24
    assert torch.equal(clf(ours).argmax(1) != y, broken)


@needs_libraries
@pytest.mark.parametrize("right", [0.99, 0.95, 0.9])
def test_autoattack_does_not_report_a_noisy_model_as_broken(right: float) -> None:
    """The package's own verdict on one noisy draw after the other reads 84 % for 0.95."""
    x, y = images(300), torch.zeros(300, dtype=torch.int64)
    model = Noisy(right)
    found = advbench.get_attack("autoattack", version="rand")(model, x, y, Threat("linf", 0.1))
    judged = advbench.evaluate(model, found, y)
    low, high = judged.draw_interval
    assert low <= right <= high
    assert judged.accuracy > 0.99


@needs_libraries
@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_autoattack_with_few_classes(classes: int, version: str) -> None:
    clf, x = linear(classes), images()
    y = clf(x).argmax(1)
    found = advbench.get_attack("autoattack", version=version)(clf, x, y, Threat("linf", 0.3))
    assert int((clf(found).argmax(1) != y).sum()) > 8


@needs_libraries
def test_a_trace_function_stays_and_the_log_too(capfd: pytest.CaptureFixture[str]) -> None:
    import logging

    clf, x = linear(4), images(3)
    before = sys.gettrace()

    def tracer(*event: object) -> None:
        return None

    sys.settrace(tracer)
    try:
        advbench.get_attack("autoattack")(clf, x, clf(x).argmax(1), Threat("linf", 0.01))
        kept = sys.gettrace()
    finally:
        sys.settrace(before)
    assert kept is tracer
    assert not logging.getLogger("auto-attack").disabled
    assert capfd.readouterr() == ("", "")


@needs_libraries
def test_steps_of_the_librarys_pgd_are_counted_and_end_at_the_corner() -> None:
    """On a linear model of two classes the best point is known: eps against the sign of the difference of weights."""
    clf, x = linear(2), images(6)
    y = clf(x).argmax(1)
    crafted = advbench.craft(advbench.get_attack("torchattacks:PGD"), clf, x, y, Threat("linf", 0.1))
    weight = clf.module[1].weight
    direction = (weight[1] - weight[0]).sign().view(1, 3, 4, 4) * torch.where(y == 0, 1.0, -1.0).view(-1, 1, 1, 1)
    torch.testing.assert_close(crafted.images, x + 0.1 * direction)
    assert (crafted.forward_passes, crafted.backward_passes) == (11 - 5 / 6, 10.0)  # one image tells the classes


@needs_libraries
def test_gradients_that_vanish_through_a_bridge_are_noticed_and_only_these() -> None:
    class Loud(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1e4 * x.flatten(1)[:, :4]

    def share(name: str, clf: Classifier, norm: str) -> float:
        x = images(8)
        y = clf(x).argmax(1)
        return advbench.craft(advbench.get_attack(name), clf, x, y, Threat(norm, 0.01)).vanished_gradients

    assert share("torchattacks:PGD", Classifier(Loud()), "linf") > 0.5
    assert share("autoattack", Classifier(Loud()), "linf") > 0.01
    for inner in ("worst_case", "gray_box"):
        x, y = images(8), Loud()(images(8)).argmax(1)
        y[0] = (y[0] + 1) % 4  # one is wrong from the start, and left alone
        theirs = {"attacks": ["torchattacks:PGD"]} if inner == "worst_case" else {"attack": "torchattacks:PGD"}
        crafted = advbench.craft(advbench.get_attack(inner, **theirs), Loud(), x, y, Threat("linf", 0.01))
        assert crafted.vanished_gradients > 0.5
    step = Earlier(images(8), 0.0)
    crafted = advbench.craft(
        advbench.get_attack("torchattacks:PGD"), Loud(), x, y, Threat("linf", 0.01), earlier=step, batch_size=3
    )
    assert crafted.vanished_gradients > 0.5
    assert share("torchattacks:PGD", linear(4), "linf") == 0
    assert share("torchattacks:CW", linear(4), "l2") == 0


@needs_libraries
@pytest.mark.parametrize("name", ["cw", "torchattacks:CW", "torchattacks:EADEN"])
@pytest.mark.parametrize("scale", [1.0, 10.0, 60.0])
def test_a_loss_that_asks_nothing_of_broken_images_is_no_vanished_gradient(name: str, scale: float) -> None:
    """Even where the logits are so far apart that the softmax of broken images is rounded to 1."""
    clf, x = linear(4), images(16)
    with torch.no_grad():
        clf.module[1].weight.mul_(scale)
        clf.module[1].bias.fill_(50 * scale)  # torchattacks takes the largest of the logits and 0
    y = clf(x).argmax(1)
    y[:4] = (y[:4] + 1) % 4
    assert advbench.craft(advbench.get_attack(name), clf, x, y, Threat("l2", 0.5)).vanished_gradients < 0.01


@needs_libraries
@pytest.mark.parametrize("name", ["torchattacks:PGDL2", "torchattacks:APGD", "autoattack"])
def test_rounding_on_large_images_is_mended(name: str) -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 10 * torch.stack([part.mean((1, 2, 3)) for part in x.split(45, dim=2)], 1)

    x = torch.rand((2, 3, 224, 224), generator=torch.Generator().manual_seed(0))
    attack = advbench.get_attack(name, **({} if name == "autoattack" else {"steps": 5}))
    found = attack(Flat(), x, torch.tensor([0, 1]), Threat("l2", 3.0))
    assert float((found.double() - x.double()).flatten(1).norm(dim=1).max()) <= 3.0 + 1e-6


@needs_libraries
@pytest.mark.parametrize("name", ["NIFGSM", "SINIFGSM", "VNIFGSM", "MIFGSM"])
def test_a_zero_gradient_fails_no_cell_but_is_noticed(name: str) -> None:
    class Loud(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1e5 * x.flatten(1)[:, :4]

    x = images(6)
    y = Loud()(x).argmax(1)
    crafted = advbench.craft(advbench.get_attack(f"torchattacks:{name}"), Loud(), x, y, Threat("linf", 0.01))
    assert bool(crafted.images.isfinite().all())


@needs_libraries
@pytest.mark.parametrize("name", ["EADL1", "EADEN"])
def test_rounding_at_the_faces_of_the_box_is_mended(name: str) -> None:
    net = small_net(3, 1).eval()
    clf = Classifier(net, GaussianPosterior(net, std=0.05)).requires_grad_(False)
    x, y = small_data(24).batch(slice(24))
    attack = advbench.get_attack(f"torchattacks:{name}", max_iterations=10, binary_search_steps=2)
    for images_ in (x, x.round()):
        found = attack(clf, images_, y, Threat("l2", 0.5))
        assert 0 <= float(found.min()) <= float(found.max()) <= 1


@needs_libraries
def test_a_failure_inside_the_library_is_one_line() -> None:
    net = small_net(4, 3).double()
    x, y = images(3).double().repeat(1, 1, 2, 2)[:, :, :6, :6], torch.tensor([0, 1, 2])
    for name in ("torchattacks:TIFGSM", "autoattack"):
        with pytest.raises(
            # Where the library gives the model images of another type, the model is what fails.
            PluginError,
            match=r"((torchattacks:TIFGSM|apgd-ce of \w+) failed: got|the model raised) RuntimeError: ",
        ) as caught:
            advbench.get_attack(name)(net.eval(), x, y, Threat("linf", 0.1))
        assert "\n" not in str(caught.value)


@needs_libraries
def test_a_model_that_cuts_the_gradient_is_noticed_whatever_else_a_loss_depends_on() -> None:
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 10 * x.detach().flatten(1)[:, :4]

    x = images(8)
    crafted = advbench.craft(advbench.get_attack("torchattacks:CW"), Cut(), x, Cut()(x).argmax(1), Threat("l2", 0.5))
    assert crafted.vanished_gradients == 1.0


@needs_libraries
def test_targets_are_passed_on() -> None:
    clf, x = linear(5), images(8)
    y = clf(x).argmax(1)
    targets = (y + 2) % 5
    found = advbench.get_attack("torchattacks:PGD", steps=40)(clf, x, y, Threat("linf", 0.5), targets=targets)
    assert torch.equal(clf(found).argmax(1), targets)
    with pytest.raises(InputError, match="targets given to torchattacks:TPGD: expected none for an untargeted attack"):
        advbench.get_attack("torchattacks:TPGD")(clf, x, y, Threat("linf", 0.5), targets=targets)


@needs_libraries
@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("torchattacks:PDG", {}, "unknown attack of torchattacks 'PDG': .*did you mean 'PGD'"),
        ("torchattacks:LGV", {}, "torchattacks:LGV: expected an attack with no other inputs"),
        ("torchattacks:PGD", {"eps": 0.1}, "unknown hyperparameter of torchattacks:PGD 'eps'"),
        ("torchattacks:PGD", {"steps": 2.5}, "hyperparameter 'steps' of torchattacks:PGD"),
        ("torchattacks:PGD", {"steps": 0}, "hyperparameter 'steps' of torchattacks:PGD"),
        ("torchattacks:APGD", {"loss": "cw"}, "hyperparameter 'loss' of torchattacks:APGD: .*'ce' or 'dlr'"),
        ("torchattacks:EADEN", {"max_iterations": 4}, "hyperparameter 'max_iterations' of torchattacks:EADEN"),
        ("torchattacks:DIFGSM", {"resize_rate": 1.0}, "hyperparameter 'resize_rate' of torchattacks:DIFGSM"),
        ("torchattacks:Pixle", {"x_dimensions": [1]}, "hyperparameter 'x_dimensions"),
        ("torchattacks:", {}, "unknown attack 'torchattacks:'"),
        ("autoattack", {"version": "fast"}, "hyperparameter 'version' of AutoAttack"),
        ("robustbench:cifar10/Linf/Standart", {}, "unknown model of robustbench 'Standart': .*did you mean 'Standard'"),
        ("robustbench:cifar11/Linf/Standard", {}, "unknown data set of robustbench 'cifar11'"),
        ("robustbench:Standard", {}, "expected robustbench:DATASET/THREAT/MODEL"),
    ],
)
def test_bad_names_and_values(name: str, values: dict[str, Any], message: str) -> None:
    get = advbench.get_defense if name.startswith("robust") else advbench.get_attack
    with pytest.raises(InputError, match=message):
        get(name, **values)


@needs_libraries
@pytest.mark.parametrize(
    ("name", "classes", "shape", "message"),
    [
        (
            "torchattacks:APGDT",
            3,
            (3, 4, 4),
            "expected at least 4 for its loss, got 3; use 'apgd', which has no such limit",
        ),
        ("torchattacks:TIFGSM", 4, (1, 6, 8), "images given to torchattacks:TIFGSM: expected 3 channels, got 1"),
    ],
)
def test_models_and_images_that_an_attack_cannot_take(
    name: str, classes: int, shape: tuple[int, ...], message: str
) -> None:
    clf, x = linear(classes), images(3).view(3, *shape)
    with pytest.raises(InputError, match=message):
        advbench.get_attack(name)(clf, x, torch.zeros(3, dtype=torch.int64), Threat("linf", 0.1))


@needs_libraries
def test_the_librarys_version_is_in_the_key() -> None:
    import importlib.metadata

    from advbench.grid.spec import make_spec, resolve

    def built_on(name: str, **params: Any) -> Any:
        _, (choice,) = resolve(make_spec({"defenses": ["erm"], "attacks": [name], "set": {name: params}}))
        return choice.component.built_on

    version = importlib.metadata.version
    theirs = {"torchattacks": version("torchattacks")}
    assert built_on("torchattacks:PGD") == theirs
    assert built_on("gray_box", attack="torchattacks:PGD") == theirs
    assert built_on("transfer", attack="worst_case", params={"attacks": ["fgsm", "torchattacks:PGD"]}) == theirs
    both = built_on("worst_case", attacks=["autoattack", "torchattacks:PGD"])
    assert both == {**theirs, "pyautoattack": version("pyautoattack")}
    assert built_on("worst_case") is None
    twice = {"gray_box@a": {"attack": "torchattacks:PGD"}}
    for attacks in (["gray_box@a", "gray_box@b"], ["gray_box@b", "gray_box@a"]):
        assert built_on("worst_case", attacks=attacks, params=twice) == theirs
    (defense,), _ = resolve(make_spec({"defenses": ["erm"], "attacks": ["fgsm"], "architecture": MODEL}))
    assert defense.net.built_on == {"robustbench": version("robustbench"), "timm": version("timm")}


MODEL = "robustbench:cifar10/Linf/Rade2021Helper_R18_ddpm"


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Data]:
    """Where robustbench looks for weights, and images of CIFAR-10's shape."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    generator = torch.Generator().manual_seed(0)
    shapes = {"train": 40, "test": 20}
    arrays = {}
    for part, count in shapes.items():
        arrays[f"x_{part}"] = torch.randint(0, 256, (count, 32, 32, 3), generator=generator, dtype=torch.uint8).numpy()
        arrays[f"y_{part}"] = torch.arange(count).numpy() % 10
    numpy.savez(tmp_path / "data.npz", **arrays)
    data = advbench.load_dataset(f"npz:{tmp_path / 'data.npz'}").train
    return tmp_path / "home" / "hub" / "robustbench" / "cifar10" / "Linf" / "Rade2021Helper_R18_ddpm.pt", data


@needs_libraries
def test_a_model_of_robustbench_runs_like_any_defense(zoo: tuple[Path, Data], cli: Cli, tmp_path: Path) -> None:
    """With weights of our own in the place of the published ones, which no test can download."""
    path, data = zoo
    net = advbench.build_architecture(MODEL, data, 7)
    path.parent.mkdir(parents=True)
    torch.save({"model_state_dict": None, "state_dict": net.state_dict()}, path)
    clf = advbench.get_defense(MODEL).fit(nn.Identity(), data)
    x, _ = data.batch(slice(4))
    torch.testing.assert_close(clf(x), net(x))
    done = cli(
        "run", "--dataset", f"npz:{tmp_path / 'data.npz'}", "--defense", MODEL, "--attack", "torchattacks:FGSM",
        "--limit", "10", "--eps", "8/255", env={"TORCH_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = pandas.read_csv(tmp_path / "results" / "results.csv")
    assert set(results.defense) == set(results.architecture) == {MODEL}
    assert list(results.attack) == ["none", "torchattacks:FGSM"]


@needs_libraries
def test_weights_that_cannot_be_downloaded_say_what_to_fetch(zoo: tuple[Path, Data]) -> None:
    path, data = zoo
    with pytest.raises(InputError) as caught:
        advbench.get_defense(MODEL).fit(nn.Identity(), data)
    line = str(caught.value)
    assert line.startswith(f"weights of {MODEL} are missing and could not be downloaded")
    assert re.search(r"download https://drive.google.com/uc\?id=[\w-]+ and save it as ", line)
    assert line.endswith(str(path))


@needs_libraries
def test_weights_are_downloaded_by_robustbenchs_own_loader(
    zoo: tuple[Path, Data], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a real server on loopback, to which gdown is sent in the place of its own."""
    import gdown

    path, data = zoo
    net = advbench.build_architecture(MODEL, data, 7)
    served = tmp_path / "served"
    served.mkdir()
    torch.save({"state_dict": net.state_dict()}, served / "weights.pt")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/weights.pt"
        fetch = gdown.download
        monkeypatch.setattr(gdown, "download", lambda output, **_: fetch(url=address, output=output, quiet=True))
        clf = advbench.get_defense(MODEL).fit(nn.Identity(), data)
        server.shutdown()
    assert path.is_file()
    x, _ = data.batch(slice(4))
    torch.testing.assert_close(clf(x), net(x))


@needs_libraries
def test_weights_that_would_run_code_are_refused(zoo: tuple[Path, Data], tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "touched",)

    path, data = zoo
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": Evil()}, path)
    with pytest.raises(InputError, match="expected tensors only, got a file that would run code when unpickled"):
        advbench.get_defense(MODEL).fit(nn.Identity(), data)
    assert not (tmp_path / "touched").exists()


@needs_libraries
@pytest.mark.parametrize("content", [b"", b"<html>quota exceeded</html>", b"PK\x03\x04 and no more"])
def test_weights_that_are_spoilt_on_disk_are_one_line(zoo: tuple[Path, Data], content: bytes) -> None:
    path, data = zoo
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    expected = rf"weights of {MODEL} cannot be read: .*; delete .* and run again, or download "
    with pytest.raises(InputError, match=expected):
        advbench.get_defense(MODEL).fit(nn.Identity(), data)


@needs_libraries
def test_weights_of_another_net_are_one_line(zoo: tuple[Path, Data]) -> None:
    path, data = zoo
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": nn.Linear(2, 2).state_dict()}, path)
    with pytest.raises(InputError, match="cannot be read: expected the published weights, got RuntimeError"):
        advbench.get_defense(MODEL).fit(nn.Identity(), data)


@needs_libraries
def test_images_that_a_model_was_not_made_for_are_refused(cli: Cli) -> None:
    done = cli("run", "--defense", MODEL, "--attack", "fgsm")
    assert done.returncode == 2
    assert "expected 3x32x32 images of 10 classes, got 1x8x8 and 10; use --dataset cifar10" in done.stderr


@needs_libraries
def test_a_robustbench_that_another_distribution_wrote_over_is_noticed(tmp_path: Path) -> None:
    real = importlib.metadata.distribution("robustbench")
    assert written_over(real) is None
    info = tmp_path / "robustbench-1.1.1.dist-info"
    info.mkdir()
    (tmp_path / "robustbench").mkdir()
    (tmp_path / "robustbench" / "utils.py").write_text("from elsewhere\n")
    (info / "METADATA").write_text("Name: robustbench\nVersion: 1.1.1\n")
    (info / "RECORD").write_text(real.read_text("RECORD") or "")
    assert written_over(importlib.metadata.PathDistribution(info)) == "robustbench/__init__.py"


@pytest.mark.skipif(HERE, reason="the extra 'bridges' is installed")
@pytest.mark.parametrize(
    ("arguments", "library"),
    [
        (["--defense", "erm", "--attack", "torchattacks:PGD"], "torchattacks"),
        (["--defense", "erm", "--attack", "autoattack"], "pyautoattack"),
        (["--defense", MODEL, "--attack", "fgsm"], "robustbench"),
    ],
)
def test_a_missing_extra_is_named(cli: Cli, arguments: list[str], library: str) -> None:
    done = cli("run", *arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"needs {library}, which is not installed; pip install 'advbench[bridges]'" in done.stderr
