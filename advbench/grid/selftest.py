"""Self-test of a GPU with short runs of all trainings and attacks, workers that share it, and memory that runs out."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from advbench.attacks.ball import distances
from advbench.attacks.base import Threat
from advbench.attacks.craft import craft
from advbench.data.base import Data
from advbench.data.datasets import load_dataset
from advbench.errors import InputError, MissingExtraError, ModelWarning, out_of_memory
from advbench.grid import devices
from advbench.grid.execution import Execution
from advbench.grid.plan import Plan
from advbench.grid.run import carry_out, prepare
from advbench.grid.scheduler import outstanding
from advbench.grid.spec import make_spec
from advbench.grid.tasks import Runner
from advbench.models.classifier import Classifier
from advbench.models.nets import build
from advbench.models.posterior import GaussianPosterior
from advbench.models.saving import export_classifier
from advbench.registry import Kind, registry
from advbench.registry.params import Configurable
from advbench.training.base import Resources, TrainContext

# Hyperparameters that shorten trainings and attacks, if they have them.
SHORT: dict[str, Any] = {
    "stages": (1,),
    "batch_size": 32,
    "burn_in": 1,
    "interval": 1,
    "samples": 4,
    "chains": 2,
    "members": 2,
    "steps": 3,
    "image_steps": 2,
    "gan_steps": 5,
    "critic_steps": 2,
    "search_steps": 2,
    "queries": 20,
    "restarts": 1,
    "targets": 2,
    "attacks": ("apgd", "square"),
    "init_from": None,
}
ROUNDING = 1e-5  # maximum relative error of a product in full float32, exceeded by TensorFloat-32
IMAGES = 64

Check = tuple[bool, str]


def selftest(device: str) -> Iterator[Check]:
    """Run the checks of a GPU; yield for each whether it passed, and a line of results.

    Args:
        device: name of the device in torch.

    Raises:
        InputError: it is not a GPU that torch can use.
    """
    (found,) = devices.look([device])
    if not found.is_gpu:
        raise InputError("--device", expected="a GPU, such as cuda:0", got=repr(device))
    device = found.name
    yield _guarded("four workers", lambda: _packing(device))  # while this process has no memory on the GPU
    devices.enter(device)
    about = " ".join(f"{name} {version}" for name, version in devices.versions_of(device).items())
    yield True, f"device: {found.kind}, {found.memory / 2**30:.1f} GiB, {about}"
    with devices.numerics(1, device), warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelWarning)
        yield _guarded("float32", lambda: _float32(device))
        yield _guarded("pixels", lambda: _pixels(device))
        yield _guarded("memory", lambda: _memory(device))
        for kind, check in (("defense", _training), ("attack", _attack)):
            for name in _usable(kind):  # type: ignore[arg-type]
                yield _guarded(f"{kind} {name}", lambda check=check, name=name: check(name, device))  # type: ignore[misc]
        yield _guarded("out of memory", lambda: _out_of_memory(device))


def _guarded(title: str, check: Callable[[], Check]) -> Check:
    """Result of a check with its time; an error counts as a failure."""
    started = time.perf_counter()
    try:
        passed, found = check()
    except Exception as error:
        passed, found = False, f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    return passed, f"{title}: {found} ({time.perf_counter() - started:.1f} s)"


def _usable(kind: Kind) -> Iterator[str]:
    for entry in registry().entries(kind):
        with suppress(MissingExtraError):
            if not entry.is_family:
                fields = registry().load(kind, entry.name).Params.model_fields
                if not any(field.is_required() for field in fields.values()):  # such as weights from a file
                    yield entry.name


def _short(kind: Kind, name: str) -> Any:
    cls = registry().load(kind, name)
    values = _shortened(cls)
    if kind == "defense" and "params" in cls.Params.model_fields:  # hyperparameters of the inner method
        values["params"] = _shortened(type(next(iter(cls().parts.values()))))
    return cls(**values)


def _shortened(cls: type[Configurable]) -> dict[str, Any]:
    return {field: value for field, value in SHORT.items() if field in cls.Params.model_fields}


def _digits(count: int = IMAGES) -> Data:
    data = load_dataset("digits").train
    return replace(data, images=data.images[:count], labels=data.labels[:count])


def _float32(device: str) -> Check:
    """Compare products and convolutions with double precision."""
    generator = torch.Generator(device).manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.empty(shape, device=device).normal_(generator=generator)

    a, b, x, w = drawn(512, 512), drawn(512, 512), drawn(16, 64, 32, 32), drawn(64, 64, 3, 3)
    pairs = [(a @ b, a.double() @ b.double()), (F.conv2d(x, w), F.conv2d(x.double(), w.double()))]
    errors = [float((found - exact).norm() / exact.norm()) for found, exact in pairs]
    return max(errors) < ROUNDING, f"relative error {errors[0]:.1e} of a product, {errors[1]:.1e} of a convolution"


def _pixels(device: str) -> Check:
    grey = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
    data = Data(grey, torch.zeros(256, dtype=torch.int64), 2)
    differing = int((data.to(device).batch(slice(None))[0].cpu() != data.batch(slice(None))[0]).sum())
    return differing == 0, f"{differing} of 256 grey values differ from the CPU's"


def _memory(device: str) -> Check:
    """Compare the measured peak memory with the size of a known tensor."""
    size = 2**28
    devices.reset_peak(device)
    before = devices.peak(device) or 0
    block = torch.empty(size, dtype=torch.uint8, device=device)
    del block
    measured = (devices.peak(device) or 0) - before
    return size <= measured <= 1.1 * size, f"{measured / 2**20:.0f} MiB measured of {size / 2**20:.0f} MiB taken"


def _planned(device: str, defenses: Sequence[str], **values: Any) -> Plan:
    """A run on digits with an epoch per training and FGSM."""
    stages = {name: {"stages": [1]} for name in defenses}
    spec = make_spec({"defenses": list(defenses), "attacks": ["fgsm"], "affinity": [], "set": stages, **values})
    return prepare(Execution(".", device=device).placed(spec))


def _out_of_memory(device: str) -> Check:
    """Craft in parts where a whole batch does not fit, and compare the examples."""
    total = devices.total(device)
    try:
        torch.empty(2 * total, dtype=torch.uint8, device=device)
        return False, "twice the device's memory was allocated without an error"
    except Exception as error:
        if not out_of_memory(error):
            return False, f"not recognised: {type(error).__name__}: {str(error).splitlines()[0]}"
    with TemporaryDirectory(prefix="advbench-selftest-") as folder:
        runner = Runner(Execution(folder, executor="inline", device=device).runtime("digits", 1))
        train, craft = (task for task in _planned(device, ["erm"]).tasks.values() if task.kind in ("train", "craft"))
        runner.run(train)
        whole = runner.run(craft)
        runner.forget()
        room = torch.cuda.memory_reserved(device) + 2**21
        torch.cuda.set_per_process_memory_fraction(min(1.0, room / total), device)
        try:
            parts = runner.run(craft)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
    if parts["ran"]["chunk"] is None:
        return False, "2 MiB were enough for a whole batch"
    examples = "the same" if whole["artifact"] == parts["artifact"] else "other"
    return whole["result"] == parts["result"], f"{examples} examples in parts of {parts['ran']['chunk']} images"


def _packing(device: str) -> Check:
    """Run four trainings with one worker, and with four at a time; compare what they store."""
    artifacts: list[dict[str, Any]] = []
    processes, seconds = set(), []
    for workers in (1, 4):
        with TemporaryDirectory(prefix="advbench-selftest-") as folder:
            execution = Execution(folder, device=device, workers=workers)
            # The first run measures what tasks take, by which those of the second are packed.
            for names in (["erm@a", "bnn@a"], ["erm@a", "erm@b", "bnn@a", "bnn@b"]):
                plan, store, started = _planned(device, names, limit=64), execution.open_store(), time.perf_counter()
                runtime = execution.runtime("digits", 1)
                start = functools.partial(execution.start, runtime)
                outcome = carry_out(plan, outstanding(plan, store), store, start, lambda *_, **__: None)
                if outcome.failed:
                    return False, f"{workers} workers: {next(iter(outcome.failed.values()))}"
            seconds.append(time.perf_counter() - started)
            records = {key: store.read_record(key) for key in plan.tasks}
        found = {key: record for key, record in records.items() if record}
        artifacts.append({key: record["artifact"] for key, record in found.items()})
        processes |= {record["ran"]["pid"] for record in found.values()} if workers > 1 else set()
    same = artifacts[0] == artifacts[1] != {}
    timing = f"{len(processes)} processes took {seconds[1] / seconds[0]:.2f} of the time of one"
    return same and len(processes) > 1, f"{timing}, {'the same' if same else 'other'} artifacts"


def _training(name: str, device: str) -> Check:
    """Train twice, the second time resumed from a checkpoint, and compare weights."""
    defense, data = _short("defense", name), _digits(256)
    module = build(defense.architecture or "small_cnn", data, 0)
    kept: list[tuple[Mapping[str, Tensor], Mapping[str, Any]]] = []

    class Slot:
        def load(self) -> Any:
            return kept[len(kept) // 2] if kept else None

        def save(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
            kept.append(({key: tensor.detach().cpu().clone() for key, tensor in tensors.items()}, dict(values)))

    context = TrainContext(resources=Resources(device=device), checkpoint=Slot(), checkpoint_seconds=0.0)
    with devices.unsteady_kernels() as unsteady:
        first = export_classifier(defense.fit(module, data, context))[0]
        second = export_classifier(defense.fit(module, data, context))[0]
    differing = [key for key, tensor in first.items() if not torch.equal(tensor, second[key])]
    if unsteady:
        return True, f"not reproducible because of {', '.join(sorted(unsteady))}; its results are flagged"
    return not differing, f"{len(differing)} of {len(first)} tensors differ after resuming halfway"


def _attack(name: str, device: str) -> Check:
    """Check that examples are inside the ball and reproducible, on a deterministic and on a random net."""
    attack = _short("attack", name)
    data = _digits().to(device)
    x, y = data.batch(slice(None))
    for random in (False, True):
        module = build("small_cnn", data, 0).to(device).eval()
        posterior = GaussianPosterior(module, 0.02) if random else None
        clf = Classifier(module, posterior).requires_grad_(False)
        for norm, eps in (("linf", 0.1), ("l2", 1.0)):
            if norm not in attack.norms:
                continue
            threat = Threat(norm, eps)  # type: ignore[arg-type]
            with devices.unsteady_kernels() as unsteady:
                first, second = (craft(attack, clf, x, y, threat, seed=1).images for _ in range(2))
            if not unsteady and not torch.equal(first, second):
                return False, f"differs when repeated, {norm}, {'random' if random else 'deterministic'} net"
            if float(distances(first, x, threat).max()) > eps + 1e-6:
                return False, f"left the {norm} ball"
    return True, "reproducible, inside the ball"
