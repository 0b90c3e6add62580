"""Every training method and every attack on a device that is not the CPU (see `pretend`), and what they cost there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pretend import DEVICE, Counts, plain, pretended
from test_conformance import CHEAP_ATTACKS, CHEAP_WRAPPERS, cheap_defenses, usable
from torch import Tensor

from advbench.attacks.base import Attack, Threat
from advbench.attacks.craft import Earlier, craft
from advbench.audit.findings import Finding
from advbench.audit.run import audit
from advbench.audit.subject import Subject
from advbench.errors import InputError
from advbench.evaluation.evaluate import evaluate
from advbench.grid.execution import Execution
from advbench.grid.run import prepare
from advbench.grid.spec import make_spec
from advbench.grid.tasks import Runner
from advbench.models.classifier import Classifier
from advbench.models.noise import DropoutNoise
from advbench.models.posterior import GaussianPosterior, SamplePosterior
from advbench.models.saving import export_classifier
from advbench.registry import registry
from advbench.testing import _InterruptingSlot, _InterruptionError, small_data, small_net
from advbench.training.base import Resources, TrainContext

EPS = {"linf": 0.1, "l2": 0.5}
KINDS = ("deterministic", "gaussian", "samples", "noise")


def classifier(kind: str, device: str) -> Classifier:
    net = small_net().eval().to(device)
    if kind == "noise":
        return Classifier(net, noise=DropoutNoise(0.2)).requires_grad_(False)
    posterior: Any = None
    if kind == "gaussian":
        posterior = GaussianPosterior(net, std=0.05)
    if kind == "samples":
        flat = torch.cat([parameter.detach().flatten() for parameter in net.parameters()])
        posterior = SamplePosterior(net, torch.stack([flat, 1.1 * flat, 0.9 * flat]))
    return Classifier(net, posterior).requires_grad_(False)


def crafted(attack: Attack, kind: str, device: str, **options: Any) -> tuple[Tensor, Any]:
    """Examples of 8 images by 2 batches, and the predictions on them."""
    x, y = small_data().to(device).batch(slice(8))
    clf = classifier(kind, device)
    clf.chunk = options.pop("chunk", None)
    if options.pop("targets", False):
        options["targets"] = (y + 1) % 3
    if options.pop("sweep", False):
        options["earlier"] = Earlier(x, 0.0)
    norm = options.pop("norm")
    result = craft(attack, clf, x, y, Threat(norm, EPS[norm]), batch_size=5, **options)
    return plain(result.images), evaluate(clf, result.images, y, 3, batch_size=5)


def attacks() -> Iterator[Any]:
    for entry in usable("attack"):
        if entry.name in ("autoattack",) or entry.is_family:
            continue
        for params in CHEAP_ATTACKS.get(entry.name, [{}]):
            yield pytest.param(entry.name, params, id=f"{entry.name}-{params}")


@pytest.mark.parametrize(("name", "params"), list(attacks()))
def test_attacks_give_on_the_device_what_they_give_on_the_cpu(name: str, params: dict[str, Any]) -> None:
    attack: Attack = registry().load("attack", name)(**params)
    norms = sorted(attack.norms)
    cases: list[tuple[str, dict[str, Any]]] = [("deterministic", {"norm": norm, "sweep": True}) for norm in norms]
    cases.append(("gaussian", {"norm": norms[-1], "targets": attack.targeted}))
    cases.append(("gaussian", {"norm": norms[0], "chunk": 3}))
    if name == "pgd":
        cases += [("samples", {"norm": norms[-1]}), ("noise", {"norm": norms[0]})]
    for kind, options in cases:
        there, seen = crafted(attack, kind, "cpu", **options)
        with pretended() as counts:
            here, predictions = crafted(attack, kind, DEVICE, **options)
        assert torch.equal(here, there), (kind, options)
        assert predictions.to_bytes() == seen.to_bytes()
        assert counts.kernels


def defenses() -> Iterator[Any]:
    for entry in usable("defense"):
        for number, params in enumerate(cheap_defenses(entry.name)):
            yield pytest.param(entry.name, params, id=f"{entry.name}-{number}")


@pytest.mark.parametrize(("name", "params"), list(defenses()))
def test_trainings_give_on_the_device_what_they_give_on_the_cpu(name: str, params: dict[str, Any]) -> None:
    augmented = params if name in CHEAP_WRAPPERS else {**params, "augment": True}
    defense = registry().load("defense", name)(**augmented)
    whole = defense.fit(small_net(), small_data(), TrainContext(seed=3))
    slot = _InterruptingSlot(1 if name == "active" else 2)  # which saves once per round
    context = TrainContext(seed=3, checkpoint=slot, checkpoint_seconds=0.0, resources=Resources(device=DEVICE))
    with pretended():
        with pytest.raises(_InterruptionError):
            defense.fit(small_net(), small_data(), context)
        slot.left = -1
        resumed = export_classifier(defense.fit(small_net(), small_data(), context))[0]
        trained = {tensor_name: plain(tensor) for tensor_name, tensor in resumed.items()}
    for tensor_name, tensor in export_classifier(whole)[0].items():
        assert torch.equal(trained[tensor_name], tensor), tensor_name


def test_tensors_of_two_devices_do_not_mix() -> None:
    with pretended():
        here = torch.ones(3, device=DEVICE)
        with pytest.raises(RuntimeError, match="same device"):
            here + torch.ones(3)
        with pytest.raises(RuntimeError, match="generator"):
            here.normal_(generator=torch.Generator())


def test_labels_on_another_device_are_refused() -> None:
    x, y = small_data().batch(slice(4))
    with pretended(), pytest.raises(InputError, match=r"labels .*: expected the images' device \(pretend:0\), got cpu"):
        registry().load("attack", "fgsm")()(classifier("deterministic", DEVICE), x.to(DEVICE), y, Threat("linf", 0.1))


def test_pixels_are_the_cpus() -> None:
    with pretended():
        images = small_data().images.mul(255).round().to(torch.uint8)
        data = small_data().__class__(images, small_data().labels, 3)
        assert torch.equal(plain(data.to(DEVICE).batch(slice(None))[0]), data.batch(slice(None))[0])


def marginal(
    name: str, kind: str, norm: str, effort: str, *, stop_early: bool = False, **params: Any
) -> tuple[float, float]:
    """Kernels and waits of one more step of an attack, on images none of which it breaks."""

    def counted(number: int) -> Counts:
        attack = registry().load("attack", name)(**{effort: number}, **params)
        with pretended() as counts:
            x, y = small_data().to(DEVICE).batch(slice(8))
            attack(classifier(kind, DEVICE), x, y, Threat(norm, 1e-6), stop_early=stop_early)
        return counts

    few, many = counted(4), counted(12)
    return (many.kernels - few.kernels) / 8, (many.waits - few.waits) / 8


@pytest.mark.parametrize(
    ("name", "kind", "effort", "params", "waits"),
    [
        ("pgd", "deterministic", "steps", {}, 0),
        ("pgd", "gaussian", "steps", {}, 0),
        ("pgd", "deterministic", "steps", {"stop_early": True}, 1),
        ("eot_pgd", "gaussian", "steps", {"samples": 5, "stop_early": True}, 1),
        ("apgd", "gaussian", "steps", {"samples": 5, "stop_early": True}, 1),
        ("eot_pgd", "gaussian", "steps", {"samples": 2}, 0),
        ("apgd", "gaussian", "steps", {"samples": 2}, 0),
        ("fmn", "gaussian", "steps", {"samples": 2}, 0),
        ("square", "deterministic", "queries", {}, 1),
        ("square", "gaussian", "queries", {}, 0),
        ("cw", "gaussian", "steps", {"samples": 2, "search_steps": 1, "abort_early": False}, 0),
    ],
)
def test_a_step_of_an_attack_waits_for_the_device_at_most_so_often(
    name: str, kind: str, effort: str, params: dict[str, Any], waits: int
) -> None:
    assert marginal(name, kind, "l2", effort, **params)[1] <= waits


def test_a_training_step_waits_only_when_it_reports() -> None:
    defense = registry().load("defense", "adv_bnn")

    def counted(epochs: int) -> Counts:
        with pretended() as counts:
            context = TrainContext(resources=Resources(device=DEVICE))
            defense(stages=(epochs,), batch_size=4).fit(small_net(), small_data(), context)
        return counts

    few, many = counted(1), counted(3)  # 12 and 36 steps
    assert many.waits == few.waits
    assert many.copies - few.copies == 2, "an epoch's order, once"


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_waits_for_the_device_once_a_draw_and_batch(kind: str) -> None:
    def waits(draws: int) -> int:
        with pretended() as counts:
            x, y = small_data().to(DEVICE).batch(slice(12))
            evaluate(classifier(kind, DEVICE), x, y, draws, batch_size=4)
        return counts.waits

    if kind in ("gaussian", "noise"):
        assert waits(9) - waits(5) == 4 * 3
    else:  # one pass, or three members whatever the number of draws
        assert waits(9) == waits(5)


def test_whole_tasks_store_on_the_device_what_they_store_on_the_cpu(tmp_path: Path) -> None:
    """A run with history, attacks to convergence and on known draws, and other images; cheap checks are part of it."""
    values = {
        "defenses": ["bnn"],
        "attacks": ["pgd", "known_draw"],
        "ood": ["uniform"],
        "eps": [0.1],
        "limit": 8,
        "draws": 3,
        "history": "epoch",
        "converge": 2,
        "set": {"bnn": {"stages": [1]}},
    }
    plan = prepare(make_spec(values))
    results: list[list[dict[str, Any]]] = []
    for device in ("cpu", DEVICE):
        execution = Execution(str(tmp_path / device[:3]), device="cpu", executor="inline")
        runtime = execution.runtime("digits", 1, ["uniform"])
        resources = dataclasses.replace(runtime.resources, device=device)
        with pretended():
            runner = Runner(dataclasses.replace(runtime, resources=resources, kind=torch.device(device).type))
            found = [runner.run(task)["result"] for task in plan.tasks.values()]
        for attack in filter(None, (result.get("attack") for result in found)):
            del attack["seconds"]
        results.append(found)
    assert len(results[0]) == len(plan.tasks) == 7
    assert results[0] == results[1]


def test_the_source_of_an_audits_transfer_attacks_is_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("advbench.audit.run.PLAIN_EPOCHS", (1,))
    seen: list[Tensor] = []

    def applied(subject: Subject) -> Iterator[Finding]:
        assert subject.plain is not None
        seen.append(subject.plain(subject.x))
        return iter(())

    monkeypatch.setattr("advbench.audit.run._all", applied)
    with pretended():
        x, y = small_data().to(DEVICE).batch(slice(6))
        audit(classifier("gaussian", DEVICE), x, y, Threat("linf", 0.1), train=small_data().to(DEVICE))
    assert [str(logits.device) for logits in seen] == [DEVICE]


@pytest.mark.slow
def test_an_audit_finds_on_the_device_what_it_finds_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("advbench.audit.run.PLAIN_EPOCHS", (1,))
    found = []
    for device in ("cpu", DEVICE):
        with pretended():
            x, y = small_data().to(device).batch(slice(6))
            other = small_data().to(device)
            clf = classifier("gaussian", device)
            report = audit(clf, x, y, Threat("linf", 0.1), train=small_data().to(device), other=other)
        found.append([(each.check, each.verdict) for each in report.findings])
    assert found[0] == found[1]
