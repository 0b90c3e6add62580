"""Execution of a single task, with plugins, data and store."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from advbench.attacks.ball import within
from advbench.attacks.base import Threat
from advbench.attacks.craft import Crafted, Earlier, craft, craft_on_draws
from advbench.audit.run import audit
from advbench.audit.subject import ignores_images
from advbench.data.base import Data
from advbench.data.datasets import Dataset, limited, load_dataset
from advbench.data.ood import ood_digest, ood_images
from advbench.errors import (
    AdvbenchError,
    GoneError,
    InputError,
    NoGradientError,
    OutOfMemoryError,
    PluginError,
    out_of_memory,
)
from advbench.evaluation import Predictions
from advbench.evaluation.evaluate import evaluate, evaluate_draws, evaluate_ood
from advbench.evaluation.summary import known_draws, summary
from advbench.grid import devices
from advbench.grid.convergence import converge
from advbench.grid.inputs import CPU, Component, CraftInputs, EvaluateInputs, Inputs, OodRef, TrainInputs, read_training
from advbench.grid.plan import Task
from advbench.grid.spec import installed
from advbench.keys import derive, isolated_rng
from advbench.models.classifier import Classifier
from advbench.models.guard import check_trained
from advbench.models.memory import release
from advbench.models.nets import build
from advbench.models.saving import check_restores, export_classifier, load_classifier, read_tensors, tensor_bytes
from advbench.progress import OnProgress, Progress
from advbench.registry import Kind, files, pinned, registry
from advbench.registry.files import Sources
from advbench.store.records import Store
from advbench.store.storage import PATIENCE
from advbench.training.base import Resources, TrainContext
from advbench.training.history import Moment, errors_on, watches

MEASURED = "measured so far"
SPENT = "seconds spent"  # key in the saved state of a training
KEPT = 2**30  # bytes; limit on classifiers cached on the device
VANISHED = 0.01  # fraction of exactly zero gradients at which an evaluation is flagged
AUDITED = 100  # number of images for the cheap audit checks of every run

Record = dict[str, Any]
Result = tuple[dict[str, Any], bytes]  # result in the record, and the artifact


@dataclass(frozen=True)
class Runtime:
    """Environment of tasks; it is not part of keys, so it must not change results."""

    store_url: str
    dataset: str  # name of the data set, with its path if any
    data_root: str | None = None  # folder of the data sets
    resources: Resources = field(default_factory=Resources)
    checkpoint_seconds: float = 30.0  # minimum time between checkpoints of a training, in seconds
    patience: float = PATIENCE  # time limit for retrying a failing store, in seconds
    libraries: Mapping[str, str] = field(default_factory=dict)  # versions of the plan, which workers must match
    ood: tuple[str, ...] = ()  # out-of-distribution data sets, like `dataset`
    place: str = ""  # name of the worker, as in a record's `ran`
    kind: str = CPU  # kind of device that the run was planned for
    files: tuple[Sources, ...] = ()  # sources of plugins and nets in files
    pinned: Mapping[str, str] = field(default_factory=dict)  # paths of files in hyperparameters, by SHA-256

    def on(self, device: str, place: str) -> Runtime:
        """The runtime of a worker on a device."""
        return replace(self, resources=replace(self.resources, device=device), place=place)


class Runner:
    """Runs tasks in this process, one at a time; caches the data and recent nets."""

    def __init__(self, runtime: Runtime) -> None:
        devices.enter(runtime.resources.device)
        for sources in runtime.files:
            files.know(sources)
        pinned.know(runtime.pinned)
        self.runtime = runtime
        self.store = Store(runtime.store_url, runtime.patience)
        self._resources = runtime.resources
        self._slot: _StoreSlot | None = None
        self._classifiers: OrderedDict[str, Classifier] = OrderedDict()  # least recently used first
        self._images = functools.lru_cache(maxsize=1)(self._load_images)

    def run(self, task: Task, on_progress: OnProgress = lambda _: None, *, shared: bool = False) -> Record:
        """Run a task whose inputs exist; store its artifact and record; return the record.

        Prints of the task go to standard error. If memory runs out, the task is repeated with half the chunk size, down
        to one image; a training, which amplifies rounding, only if its device is not `shared` with others.

        Raises:
            GoneError: an input is missing from the store.
            AdvbenchError: the task failed, with a one-line reason.
        """
        self._check_versions(task)
        device = self.runtime.resources.device
        if (here := devices.kind_of(device)) != self.runtime.kind:
            raise InputError(
                f"device {device} of {socket.gethostname()}",
                expected=f"{self.runtime.kind}, as planned",
                got=here,
                remedy="results depend on the kind of device: choose one kind with --device",
            )
        at = time.time()
        with suppress(AdvbenchError):  # raised again by the task if it needs the data
            self.dataset()  # exclude loading from the time of the first task
        slot = self._slot = _StoreSlot(self.store, task.key)
        devices.reset_peak(device)
        with (
            devices.numerics(self.runtime.resources.threads, device),
            devices.unsteady_kernels() as unsteady,
            redirect_stdout(sys.stderr),
        ):
            result, artifact = self._in_chunks(task, on_progress, shared=shared)
        if here != CPU:  # results may differ if their inputs may differ
            needed = [self._record(key)["result"] for key in task.needs]
            unsteady |= {name for each in needed for name in each.get("nondeterministic", ())}
        if unsteady:
            result["nondeterministic"] = sorted(unsteady)
            if "flags" in result:
                result["flags"].append("nondeterministic_kernels")
        record: Record = {
            "kind": task.kind,
            "inputs": task.inputs.to_json(),
            "result": result,
            "artifact": self.store.write_artifact(task.key, artifact),
            "seconds": round(slot.seconds(), 3),
            "memory": {"peak": devices.peak(device), "device": devices.total(device)},
            "ran": {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "place": self.runtime.place or device,
                "started": round(at, 3),
                "chunk": self._resources.chunk,
            },
            "versions": dict(versions(device)),
        }
        release(device)
        self.store.write_record(task.key, record)
        if isinstance(task.inputs, TrainInputs) or (isinstance(task.inputs, CraftInputs) and task.inputs.converge):
            self.store.drop_partial(task.key)
        return record

    def _in_chunks(self, task: Task, on_progress: OnProgress, *, shared: bool) -> Result:
        resources, inputs = self.runtime.resources, task.inputs
        if isinstance(inputs, TrainInputs):
            largest = (inputs.defense.params or {}).get("batch_size", 256)
            chunks = iter([None]) if shared else devices.halvings(None, largest)
        else:
            largest = inputs.batch_size
            chunks = devices.halvings(resources.chunk, largest)
        tried: list[str] = []
        reason = ""
        for chunk in chunks:
            self._resources = replace(resources, chunk=chunk)
            try:
                return self._work(task, on_progress)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0] or type(error).__name__
            tried.append(str(chunk or largest))
            self.forget()
        raise OutOfMemoryError(
            f"memory of {resources.device} ran out with {', '.join(tried)} images at once ({reason})",
            remedy="use a smaller net or batch size, or a device with more memory",
        )

    def forget(self) -> None:
        """Free the memory of cached classifiers and images."""
        self._classifiers.clear()
        self._images.cache_clear()
        devices.reset_peak(self.runtime.resources.device)

    def _check_versions(self, task: Task) -> None:
        """Refuse mixed versions: a key must mean the same code on every machine."""
        here = {name: importlib.metadata.version(name) for name in self.runtime.libraries}
        planned = dict(self.runtime.libraries)
        kinds: tuple[Kind, ...] = ("defense", "architecture", "attack")
        for kind in kinds:
            component: Component | None = getattr(task.inputs, kind, None)
            if component is not None:
                here |= installed(kind, component.loaded_as, component.params).versions
                planned |= component.versions
        if here != planned:
            raise InputError(
                f"versions on {socket.gethostname()}",
                expected=", ".join(f"{name} {version}" for name, version in sorted(planned.items())),
                got=", ".join(f"{name} {version}" for name, version in sorted(here.items())),
                remedy="install the same versions on every machine",
            )

    def dataset(self) -> Dataset:
        """The data set of the run."""
        return load_dataset(self.runtime.dataset, self.runtime.data_root)

    def _work(self, task: Task, on_progress: OnProgress) -> Result:
        if isinstance(task.inputs, TrainInputs):
            return self._train(task.inputs, on_progress)
        if isinstance(task.inputs, CraftInputs):
            return self._craft(task.inputs, on_progress)
        inputs = task.inputs
        others = [key for key in task.needs if key not in (inputs.target, inputs.examples)]
        clean = read_predictions(self.store, others[0]) if others else None  # with the same draws
        return self._evaluate(inputs, clean, on_progress)

    def _train(self, inputs: TrainInputs, on_progress: OnProgress) -> Result:
        last: dict[str, float] = {}

        def watch(progress: Progress) -> None:
            last.update(progress.values)
            on_progress(progress)

        data = self._checked_dataset(inputs).train
        module = _net(inputs, data)
        name = inputs.defense.name
        defense = registry().load("defense", inputs.defense.loaded_as)(**inputs.defense.params or {})
        context = TrainContext(
            seed=inputs.seed,
            precision=inputs.precision,
            resources=self._resources,
            progress=watch,
            checkpoint=self._slot,
            checkpoint_seconds=self.runtime.checkpoint_seconds,
            init=self._at_hand(inputs.init) if inputs.init else None,
            fresh=lambda seed: _net(inputs, data, seed),
            net=f"the net {_shown_net(inputs.architecture)}",
        )
        if inputs.history and watches(type(defense)):
            context = replace(context, watch=self._watcher(inputs), watch_every=inputs.history.every)
        # A copy: third-party code may work in place, and later tasks use the same data.
        given = replace(data, images=data.images.clone(), labels=data.labels.clone())
        with isolated_rng(derive(inputs.seed, "fit"), self._resources.device, everywhere=True):
            clf = defense.fit(module, given, context)
        if not isinstance(clf, Classifier):
            remedy = "use: return Classifier(module)" if isinstance(clf, nn.Module) else ""
            got = type(clf).__name__
            raise PluginError(f"defense {name!r} returned", expected="a Classifier", got=got, remedy=remedy)
        check_trained(name, clf, data)
        tensors, values = export_classifier(clf)
        raw = tensor_bytes(tensors)
        check_restores(name, clf, _net(inputs, data), raw, values, data)
        statistics = dict(defense.statistics(clf))
        found: dict[str, Any] = {"classifier": values, "training": last, "statistics": statistics}
        if inputs.history and self._slot:
            found["history"] = [{"step": moment.step, "values": dict(moment.values)} for moment in self._slot.moments]
        return found, raw

    def _watcher(self, inputs: TrainInputs) -> Callable[[int, Classifier], None]:
        """Measures a classifier in training; what was measured before a restart is in the saved state."""
        plan, slot = inputs.history, self._slot
        assert plan is not None, "the caller asked"
        assert slot is not None, "a task runs"
        test = limited(self._checked_dataset(inputs).test, plan.images)
        names = [each.name for each in plan.ood]
        ood = {
            each.name if names.count(each.name) == 1 else f"{each.name}:{each.sha256[:8]}": self._ood_images(
                inputs, each, plan.images
            )
            for each in plan.ood
        }
        measure = errors_on(test, plan.draws, inputs.seed, ood)
        slot.moments.clear()  # a saved state brings its own

        def watch(step: int, clf: Classifier) -> None:
            slot.moments.append(Moment(step, measure(clf)))

        return watch

    def _craft(self, inputs: CraftInputs, on_progress: OnProgress) -> Result:
        attack = registry().load("attack", inputs.attack.loaded_as)(**inputs.attack.params or {})
        if inputs.ood is None:
            x, y = self._test_images(inputs)
        else:  # no labels; attacks on these images do not use them
            x = self._ood_images(inputs, inputs.ood, inputs.images)
            y = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        clf, threat = (
            self._at_hand(inputs.source),
            Threat(inputs.norm, inputs.eps or 0.0),
        )  # eps is None for a minimal-norm attack
        how: dict[str, Any] = {"seed": inputs.seed, "budget": inputs.budget, "batch_size": inputs.batch_size}
        if attack.knows == "the_draw":
            draws = clf.frozen_draws(attack.params.draws, inputs.seed)
            return _crafted(craft_on_draws(attack, draws, x, y, threat, report=on_progress, **how), inputs)
        earlier = None
        if inputs.sweep:
            after = inputs.sweep.after
            images = self._tensors(after)["images"].to(x.device) if after else x
            earlier = Earlier(images, inputs.sweep.eps)
        how |= {"stop_early": bool(inputs.stop_early), "report": on_progress}
        search: dict[str, Any] = {}
        try:
            if inputs.converge is None:
                crafted = craft(attack, clf, x, y, threat, nearest=True, earlier=earlier, **how)
            else:
                del how["budget"]
                how |= {"checkpoint": self._slot, "checkpoint_seconds": self.runtime.checkpoint_seconds}
                found = converge(attack, clf, x, y, threat, inputs.converge, **how)
                crafted, search = found.crafted, {"converge": found.to_json()}
        except NoGradientError:  # without gradients the images are unchanged, and the evaluation is flagged
            crafted, search = Crafted(x.clone(), random=clf.stochastic), {"no_gradient": True}
        return _crafted(crafted, inputs, search)

    def _evaluate(self, inputs: EvaluateInputs, clean: Predictions | None, on_progress: OnProgress) -> Result:
        clf = self._at_hand(inputs.target)
        how: dict[str, Any] = {"seed": inputs.seed, "batch_size": inputs.batch_size, "report": on_progress}
        attack: dict[str, Any] = {"forward_passes": 0.0, "backward_passes": 0.0, "seconds": 0.0}
        images: Tensor | None = None
        if inputs.examples is not None:
            crafted = self._record(inputs.examples)
            images = self._tensors(inputs.examples)["images"].to(self._resources.device)
            attack = {**crafted["result"], "seconds": crafted["seconds"]}
        if inputs.foreign is not None:
            x = self._ood_images(inputs, inputs.foreign, inputs.images) if images is None else images
            predictions = evaluate_ood(clf, x, inputs.draws, **how)
            result = summary(predictions, clean)
            kept = ("n_examples", "classes", "draws", "enumerated", "uncertainty", "histograms", "detection")
            made = {} if images is None else {"attack": attack}
            return {name: result[name] for name in kept if name in result} | made, predictions.to_bytes()
        x, y = self._test_images(inputs)
        if inputs.known:
            assert images is not None, "the plan includes examples of each draw"
            return self._evaluate_known(clf, inputs, images, y, attack, on_progress)
        if images is not None:
            x = within(images, x, inputs.within, outward=attack["random"]) if inputs.within else images
        predictions = evaluate(clf, x, y, inputs.draws, **how)
        # One draw gives no variance over draws, so the intervals are over images only.
        flags = [*predictions.flags, *(["one_draw"] if clf.stochastic and predictions.draws == 1 else [])]
        blind, vanished = attack.get("no_gradient", False), attack.get("vanished_gradients", 0.0) > VANISHED
        if (blind or vanished) and not ignores_images(clf, x[:AUDITED], clf.draw(derive(inputs.seed, "looks"))):
            flags.append("no_gradient" if blind else "vanished_gradients")
        if attack.get("converge", {}).get("unconverged"):
            flags.append("unconverged")
        checked: dict[str, Any] = {}
        if inputs.audit is not None and len(x) > 1:
            checks = audit(clf, x[:AUDITED], y[:AUDITED], inputs.audit.threat, seed=inputs.seed, quick=True)
            checked["audit"] = [each.to_json() for each in checks.findings if each.verdict in ("warning", "failed")]
            flags += ["misleads_attacks"] if checks.misleads else []
        stopped = attack.get("stopped_early", False)
        found = summary(predictions, clean, deterministic=not clf.stochastic, stopped_early=stopped)
        return {**found, "attack": attack, "flags": flags, **checked}, predictions.to_bytes()

    def _evaluate_known(
        self,
        clf: Classifier,
        inputs: EvaluateInputs,
        images: Tensor,
        y: Tensor,
        attack: dict[str, Any],
        on_progress: OnProgress,
    ) -> Result:
        draws = clf.frozen_draws(inputs.draws, inputs.seed)
        enumerated = clf.members is not None and clf.members == len(draws) > 1
        how: dict[str, Any] = {"batch_size": inputs.batch_size, "report": on_progress}
        predictions = evaluate_draws(draws, images, y, enumerated=enumerated, **how)
        flags = ["vanished_gradients"] if attack.get("vanished_gradients", 0.0) > VANISHED else []
        return {**known_draws(predictions), "attack": attack, "flags": flags}, predictions.to_bytes()

    def _ood_images(self, inputs: Inputs, wanted: OodRef, count: int) -> Tensor:
        root = self.runtime.data_root
        fitting = [name for name in self.runtime.ood if ood_digest(name, root) == wanted.sha256]
        if not fitting:
            raise _changed(wanted.name)
        own = self._checked_dataset(inputs).test
        images = ood_images(fitting[0], root, count, own.shape, wanted.scale, bool(wanted.signed), own)
        return images.to(self.runtime.resources.device)

    def _checked_dataset(self, inputs: Inputs) -> Dataset:
        dataset = self.dataset()
        if dataset.digest != inputs.data.sha256:
            raise _changed(dataset.name)
        return dataset

    def _test_images(self, inputs: CraftInputs | EvaluateInputs) -> tuple[Tensor, Tensor]:
        return self._images(self._checked_dataset(inputs).digest, inputs.images)

    def _load_images(self, digest: str, images: int) -> tuple[Tensor, Tensor]:
        """Images and labels on the device, cached by digest of the data set."""
        return limited(self.dataset().test, images).to(self.runtime.resources.device).batch(slice(None))

    def _record(self, key: str) -> Record:
        record = self.store.read_record(key)
        if record is None:
            raise GoneError(key)
        return record

    def _tensors(self, key: str) -> dict[str, Tensor]:
        return read_tensors(_artifact(self.store, key))

    def _load_classifier(self, key: str) -> Classifier:
        record = self._record(key)
        inputs = read_training(record)
        data = self._checked_dataset(inputs).train
        module = _net(inputs, data)
        clf = load_classifier(module, self._tensors(key), record["result"]["classifier"])
        return clf.to(self.runtime.resources.device)

    def classifier(self, key: str) -> Classifier:
        """Trained classifier of a key, on the device.

        Raises:
            GoneError: it is missing from the store.
        """
        return self._at_hand(key)

    def _at_hand(self, key: str) -> Classifier:
        """Trained classifier of a key on the device, cached as long as there is room."""
        clf = self._classifiers.pop(key, None) or self._load_classifier(key)
        self._classifiers[key] = clf
        while len(self._classifiers) > 1 and sum(map(_size, self._classifiers.values())) > KEPT:
            self._classifiers.popitem(last=False)
        clf.chunk = self._resources.chunk
        return clf


def _net(inputs: TrainInputs, data: Data, seed: int | None = None) -> nn.Module:
    """The untrained net, by default with initial weights from the training's seed."""
    net = inputs.architecture
    return build(net.loaded_as, data, derive(inputs.seed, "init") if seed is None else seed, net.params)


def _shown_net(net: Component) -> str:
    """A net for messages, such as `my.py:build (width=32)`."""
    name = registry().find("architecture", net.loaded_as).called
    params = ", ".join(f"{key}={value}" for key, value in (net.params or {}).items())
    return f"{name} ({params})" if params else name


def _size(clf: Classifier) -> int:
    """Size of a classifier's tensors in bytes."""
    return sum(tensor.nbytes for tensor in (*clf.parameters(), *clf.buffers()))


def _crafted(crafted: Crafted, inputs: CraftInputs, search: Mapping[str, Any] | None = None) -> Result:
    result = {
        "forward_passes": crafted.forward_passes,
        "backward_passes": crafted.backward_passes,
        "random": crafted.random,
        "vanished_gradients": crafted.vanished_gradients,
        **({"stopped_early": True} if inputs.stop_early else {}),
        **(search or {}),
    }
    return result, tensor_bytes({"images": crafted.images})


def read_predictions(store: Store, key: str) -> Predictions:
    """Read the predictions of an evaluation.

    Raises:
        GoneError: it is missing from the store.
    """
    return Predictions.from_bytes(_artifact(store, key))


def _artifact(store: Store, key: str) -> bytes:
    raw = store.read_artifact(key)
    if raw is None:
        raise GoneError(key)
    return raw


def _changed(name: str) -> InputError:
    return InputError(f"data set {name!r} changed since the run was planned", remedy="run the same command again")


@functools.cache
def versions(device: str) -> dict[str, str]:
    """Versions of libraries and the kind of device, for records; determined once per process."""
    names = ("advbench", "torch", "numpy")
    found = {name: importlib.metadata.version(name) for name in names}
    kind = devices.kind_of(device)
    named = {"device": platform.machine() if kind == CPU else kind}
    return {**found, **named, **devices.versions_of(device), "python": platform.python_version()}


class _StoreSlot:
    """Checkpoint of a task in the store, with the time spent, including previous runs."""

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._key = key
        self._began = time.perf_counter()
        self._before: float | None = None
        self.moments: list[Moment] = []  # measurements of a training so far

    def seconds(self) -> float:
        """Seconds spent on the task so far."""
        return (self._before or 0.0) + time.perf_counter() - self._began

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        raw = self._store.read_partial(self._key)
        if raw is None:
            self._before = self._before or 0.0
            return None
        size = int.from_bytes(raw[:8], "little")
        values = json.loads(raw[8 : 8 + size])
        spent = values.pop(SPENT, 0.0)
        self.moments[:] = [Moment(step, found) for step, found in values.pop(MEASURED, [])]
        if self._before is None:  # otherwise this run saved it and counts its time
            self._before = spent
        return read_tensors(raw[8 + size :]), values

    def save(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        measured = {MEASURED: self.moments} if self.moments else {}
        head = json.dumps({**values, SPENT: self.seconds(), **measured}).encode()
        self._store.write_partial(self._key, len(head).to_bytes(8, "little") + head + tensor_bytes(tensors))
