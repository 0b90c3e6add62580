"""The command `advbench audit`."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advbench.cli.options import DEFAULT_OUT, SPEC_OPTIONS, expanded, make_spec, takes_execution
from advbench.cli.output import complain, say
from advbench.cli.run import carry_out_shown
from advbench.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from advbench.audit.cells import Cell
    from advbench.data.datasets import Dataset
    from advbench.grid.execution import Execution
    from advbench.grid.plan import Plan
    from advbench.grid.spec import RunSpec
    from advbench.models.classifier import Classifier
    from advbench.store.records import Store


def _make_spec(file: Path | None, **options: Any) -> "RunSpec | None":
    """Spec from options; None without a defense, when a finished run is audited."""
    if file is None and not options["defenses"]:
        given = next((name for name, value in options.items() if value is not None), None)
        if given is not None:
            remedy = "a finished run is audited with its own settings: give only its folder, with --out"
            raise InputError(f"--{given.replace('_', '-')}", expected="--defense or --spec as well", remedy=remedy)
        return None
    if file is None:
        options["attacks"] = options["attacks"] or ["none"]
    return make_spec(file, **options)


@functools.partial(expanded, "spec", SPEC_OPTIONS, _make_spec)
@takes_execution
def audit(
    spec: "RunSpec | None",
    execution: "Execution",
    *,
    out: Annotated[Path, typer.Option(help="folder for audit.md and audit.json, or of a finished run")] = DEFAULT_OUT,
    surrogate: Annotated[
        str | None,
        typer.Option(
            help="differentiable architecture with the defense's weights, for gradients of attacks [default: none]"
        ),
    ] = None,
) -> None:
    """Check whether an evaluation of defenses is credible: of --defense, or of the finished run in --out."""
    from advbench.audit import markdown
    from advbench.audit.checklist import checklist
    from advbench.grid.run import Settings, prepare, prepare_anew
    from advbench.registry import files
    from advbench.report.output import check_writable
    from advbench.store.storage import write_file

    store, root = execution.open_store(), execution.data_root
    if spec is not None:
        plan = prepare(execution.placed(spec), root)
    elif (out / "spec.toml").exists():
        plan = prepare_anew(execution.placed(make_spec(out / "spec.toml")), out, root)
        for name in plan.spec.files.values():
            files.kept_name(name)  # may be needed: a classifier may contain a net from a file
    else:
        expected = "--defense NAMES, or the --out folder of a finished run"
        raise InputError(f"nothing to audit in {out}", expected=expected)
    if plan.spec.eps[-1] == 0:
        raise InputError("--eps", expected="a radius above 0", got=0)
    check_writable(out)
    outcome = carry_out_shown(_trainings(plan), execution, store, Settings(), for_themselves=plan.trained.values())
    for line in outcome.why(plan.tasks):
        complain(line)
    audits = list(_audits(plan, execution, store, surrogate))
    write_file(out / "audit.md", markdown(audits, checklist()).encode())
    write_file(out / "audit.json", json.dumps([each.to_json() for each in audits], indent=1).encode())
    for each in audits:
        say(each.conclusion)
        for finding in each.failed:
            say(f"  {finding.check}: {finding.sentence} {finding.means} Next: {finding.next}")
    for name in ("audit.md", "audit.json"):
        say(out / name)
    if outcome.failed or not all(each.ok for each in audits):
        raise typer.Exit(1)


def _trainings(plan: "Plan") -> "Plan":
    """The trainings of a plan."""
    from dataclasses import replace

    tasks = {key: task for key, task in plan.tasks.items() if task.kind == "train"}
    return replace(plan, tasks=tasks, cells=(), ood=())


def _audits(plan: "Plan", execution: "Execution", store: "Store", surrogate: str | None) -> "Iterator[Any]":
    from advbench.attacks.base import Threat
    from advbench.audit.run import audit as audited
    from advbench.data.datasets import limited
    from advbench.grid import devices
    from advbench.grid.tasks import Runner

    spec = plan.spec
    runtime = execution.runtime(spec.dataset, spec.threads, spec.ood)
    runner = Runner(runtime)
    data, device = runner.dataset(), runtime.resources.device
    x, y = limited(data.test, min(spec.limit or 200, 200)).to(device).batch(slice(None))
    for (label, seed), key in plan.trained.items():
        if not store.is_done(key, with_artifact=True):
            continue
        name = f"{label}, seed {seed}"
        complain(f"note: auditing {name}")
        with devices.numerics(spec.threads, device):
            clf = runner.classifier(key)
            yield audited(
                clf,
                x,
                y,
                Threat(spec.norm, spec.eps[-1]),
                seed=seed,
                name=name,
                train=data.train.to(device),
                other=data.validation.to(device),
                surrogate=None if surrogate is None else _stand_in(surrogate, data, clf).to(device),
                cells=list(_cells(plan, store, label, seed)),
            )


def _stand_in(name: str, data: "Dataset", clf: "Classifier") -> "nn.Module":
    """Build a net of an architecture with the weights of the classifier.

    Raises:
        InputError: the weights do not fit.
    """
    from advbench.models.nets import build

    net = build(name, data.train, seed=0)
    weights = {**dict(clf.module.named_buffers()), **clf.draw(0).weights}
    missing = [each for each in net.state_dict() if each not in weights]
    if not missing:
        try:
            net.load_state_dict({each: weights[each] for each in net.state_dict()})
        except RuntimeError:
            missing = ["a weight of the same shape"]
    if missing:
        remedy = "use an architecture with the parameter names of the defense"
        expected = "a net that fits the defense's weights"
        raise InputError(f"--surrogate {name}", expected=expected, got=f"no {missing[0]}", remedy=remedy)
    return net.eval().requires_grad_(False)


def _cells(plan: "Plan", store: "Store", label: str, seed: int) -> "Iterator[Cell]":
    """Cells of the run at the largest radius for one classifier, as far as they are in the store."""
    from advbench.audit.cells import Cell, Kind
    from advbench.grid.tasks import read_predictions

    for cell in plan.cells:
        attack = cell.attack
        if attack is None or (cell.defense.label, cell.seed, cell.eps) != (label, seed, plan.spec.eps[-1]):
            continue
        if not store.is_done(cell.key, with_artifact=True):
            continue
        kind: Kind = "one step" if attack.passes is not None and attack.passes <= 1 else "gradient"
        if "mixed" in attack.traits:
            kind = "mixed"
        if cell.source.label != label or "black_box" in attack.traits:
            kind = "black box"
        parts = frozenset(attack.parts) if "mixed" in attack.traits else frozenset()
        name = attack.label if cell.source.label == label else f"{attack.label} from {cell.source.label}"
        yield Cell(name, kind, parts, read_predictions(store, cell.key).correct)
