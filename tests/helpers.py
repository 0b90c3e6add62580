"""What tests of several packages share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from advbench.grid.identity import Identity, Shape
from advbench.grid.inputs import (
    Component,
    CraftInputs,
    DataRef,
    EvaluateInputs,
    TaskInputs,
    TaskKind,
    TrainInputs,
)
from advbench.store.heartbeat import Heartbeat
from advbench.store.records import Store


def install(folder: Path, name: str, body: str, version: str = "1.0") -> dict[str, str]:
    """Put a distribution with one entry point into a folder; the environment that finds it."""
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(body)
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[advbench]\n{module} = {module}\n")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


def other(state: str, store: Store, **changes: Any) -> str:
    """The entry of another driver; returns its id."""
    heartbeat = Heartbeat(store.storage)
    heartbeat.open()
    heartbeat.close("running")
    name = f"runs/{heartbeat.id}.json"
    entry = json.loads(store.storage.read(name) or b"")
    store.storage.write(name, json.dumps({**entry, "state": state, **changes}).encode())
    return heartbeat.id


def dead_process() -> tuple[int, str]:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid, "1"


def some_inputs(kind: TaskKind, seed: int = 0) -> TaskInputs:
    """Inputs of a task of that kind."""
    common: dict[str, Any] = {"data": DataRef("digits", "d" * 64), "threads": 1, "seed": seed}
    plugin = Component("some", "advbench", "1", {})
    if kind == "train":
        net = Component("small_cnn", "advbench", "1")
        return TrainInputs(defense=plugin, architecture=net, precision="float32", **common)
    images: dict[str, Any] = {"images": 10, "batch_size": 5}
    if kind == "craft":
        return CraftInputs(attack=plugin, source="s" * 64, norm="linf", eps=0.1, **images, **common)
    return EvaluateInputs(target="t" * 64, examples=None, draws=2, **images, **common)


class Harmful:
    """Unpickling it opens, and so creates, a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (self.path, "w")


def some_identity(images: int) -> Identity:
    """Data like `digits`, with so many test images."""
    shape = Shape(channels=1, height=8, width=8, classes=10)
    return Identity(name="digits", sha256="d" * 64, train_count=10, test_count=images, shape=shape)
