"""What every training method, attack and evaluation gives on a fixed tiny net, beside the versions that it belongs to.

`python tests/versions.py` records it anew in versions.json, and refuses to where results changed and no version did, or
a version and no result. Raise the `version` of a plugin whose own code changed, or `SCHEMA` for a kind of task whose
shared code did.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from test_conformance import CHEAP_ATTACKS, cheap_defenses, usable
from torch import Tensor, nn

from advbench.attacks import Threat, craft
from advbench.attacks.craft import Earlier
from advbench.data.base import Data
from advbench.evaluation.evaluate import evaluate
from advbench.grid.spec import plugin_version
from advbench.keys import SCHEMA
from advbench.models import Classifier, GaussianNoise, GaussianPosterior, Posterior, SamplePosterior
from advbench.models.saving import export_classifier
from advbench.registry import registry
from advbench.testing import small_data, small_net

PATH = Path(__file__).parent / "versions.json"
NEAR = 5e-3  # relative; what the rounding of another processor may make of a mean
KINDS = {"defense": "train", "attack": "craft", "evaluation": "evaluate"}
Results = dict[str, dict[str, Any]]


TARGETS = ("deterministic", "gaussian", "members")


def target(kind: str) -> Classifier:
    net = small_net().eval()
    posterior: Posterior | None = None
    if kind == "gaussian":
        posterior = GaussianPosterior(net, std=0.05)
    if kind == "members":
        flat = torch.cat([parameter.detach().flatten() for parameter in net.parameters()])
        posterior = SamplePosterior(net, torch.stack([flat, 1.2 * flat, 0.8 * flat]))
    return Classifier(net, posterior).requires_grad_(False)


def measured() -> Results:
    """For each plugin and the evaluation: the versions that its results belong to, and numbers that stand for them."""
    return {name: {"version": version, "results": values} for name, version, values in _all()}


def _all() -> Iterator[tuple[str, str, list[float]]]:
    data = small_data()
    x, y = data.batch(slice(16))
    for kind in ("defense", "attack"):
        for entry in usable(kind):
            if entry.name == "autoattack":
                continue
            cls = registry().load(kind, entry.name)
            version = f"{SCHEMA[KINDS[kind]]}/{plugin_version(cls, entry)}"
            if kind == "defense":
                values = [n for params in cheap_defenses(entry.name) for n in _of_defense(cls(**params), data)]
            else:
                values = [n for params in CHEAP_ATTACKS.get(entry.name, [{}]) for n in _of_attack(cls(**params), x, y)]
            yield f"{kind} {entry.name}", version, [round(value, 7) for value in values]
    values = []
    for made in TARGETS:
        found = evaluate(target(made), x, y, draws=5)
        values += [found.accuracy, *found.interval, found.draw_accuracy, *found.draw_interval]
        values += [float(found.mean_probs.max(1).mean()), float(found.mean_entropy.mean())]
    with torch.no_grad():
        wrong = evaluate(target(TARGETS[0]), x[:10], target(TARGETS[0])(x[:10]).argmin(1), draws=1)
    values.append(float(wrong.interval.low == wrong.accuracy == 0))
    yield "evaluation", str(SCHEMA["evaluate"]), [round(value, 7) for value in values]


def _of_defense(defense: Any, data: Data) -> Iterator[float]:
    """The trained weights, and what the method reports of them; where noise is in pixels, also in other units."""
    clf = defense.fit(small_net(), data)
    yield from _of_weights(clf)
    yield from (value for value in defense.statistics(clf).values() if isinstance(value, float))
    if isinstance(clf.noise, GaussianNoise):
        scaled = nn.Sequential(nn.BatchNorm2d(1), small_net())
        yield from _of_weights(defense.fit(scaled, data))


def _of_weights(clf: Classifier) -> list[float]:
    """All that is stored of it: in which order an attack meets its draws is no matter of the training."""
    values = torch.cat([tensor.flatten().float() for tensor in export_classifier(clf)[0].values()])
    return [float(values.mean()), float(values.abs().mean()), float(values.std())]


def _of_attack(attack: Any, x: Tensor, y: Tensor) -> Iterator[float]:
    """How far it moves images, what that does to the logits, what it costs; also in a sweep, and stopped early."""
    for made in TARGETS:
        for norm, eps in (("linf", 0.1), ("l2", 0.5)):
            if norm not in attack.norms:
                continue
            clf, threat = target(made), Threat(norm, eps)
            hows: list[dict[str, Any]] = [{}, {"earlier": Earlier(x, 0.0)}]
            for how in [*hows, {"stop_early": True}] if attack.stops_early else hows:
                found = craft(attack, clf, x, y, threat, **how)
                yield float((found.images - x).abs().mean())
                with torch.no_grad():
                    yield float(small_net().eval()(found.images).gather(1, y[:, None]).mean())
                yield found.forward_passes


def differing(known: Results, now: Results) -> dict[str, str]:
    """What changed without the other, by name: `results` or `version`; and names that are new or gone.

    A new `SCHEMA` is for all plugins of its kind, of which one at least must give another number, be it by rounding.
    """
    found = {name: "recorded" if name in known else "not recorded" for name in known.keys() ^ now.keys()}
    both = known.keys() & now.keys()
    moved = {name.partition(" ")[0] for name in both if known[name]["results"] != now[name]["results"]}
    for name in both:
        same = known[name]["version"] == now[name]["version"]
        pairs = list(zip(known[name]["results"], now[name]["results"], strict=False))
        near = len(known[name]["results"]) == len(now[name]["results"])
        near = near and all(abs(one - other) <= NEAR * max(abs(one), abs(other), 0.01) for one, other in pairs)
        (old, _, own_before), (new, _, own) = (each[name]["version"].partition("/") for each in (known, now))
        if near and old != new and own_before == own and name.partition(" ")[0] in moved:
            found[name] = "schema changed"
        elif same != near:
            found[name] = "results changed, version did not" if same else "version changed, results did not"
        elif not same:
            found[name] = "both changed"
    return dict(sorted(found.items()))


def main() -> int:
    torch.set_num_threads(1)
    known: Results = json.loads(PATH.read_text()) if PATH.exists() else {}
    now = measured()
    refused = {name: why for name, why in differing(known, now).items() if "did not" in why}
    for name, why in refused.items():
        sys.stdout.write(f"{name}: {why}\n")
    if refused:
        return 1
    lines = (f"  {json.dumps(name)}: {json.dumps(each)}" for name, each in sorted(now.items()))
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
