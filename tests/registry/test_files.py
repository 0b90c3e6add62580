"""Plugins in files: what is read, how it is keyed, and what becomes of files that misbehave."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import advbench
from advbench.errors import InputError
from advbench.models import Classifier
from advbench.models.saving import export_classifier, load_classifier, read_tensors, tensor_bytes
from advbench.registry import files, registry
from advbench.testing import small_data, small_net
from advbench.training import Defense

DEFENSE = """
from advbench.training import ErmLoss, TrainParams

class Mine(ErmLoss):
    '''A defense of one's own.'''

    class Params(TrainParams):
        '''Hyperparameters.'''
"""
ATTACK = """
from advbench.attacks import Attack
from helpers import scale

class Mine(Attack):
    def run(self, clf, x, goal, threat, generator):
        return (x + scale(threat.eps)).clamp(0, 1)
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(path: str, text: str) -> Path:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    return target


# What is read


def test_a_file_alone_has_the_digest_that_sha256sum_prints() -> None:
    path = write("my.py", DEFENSE)
    assert files.read("my.py").digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_neither_folder_nor_name_of_the_file_is_in_its_digest() -> None:
    for path in ("my.py", "other/yours.py"):
        write(path, "import helpers\n")
        write(str(Path(path).parent / "helpers.py"), "x = 1\n")
    assert files.read("my.py").digest == files.read("other/yours.py").digest
    write("other/helpers.py", "x = 2\n")
    assert files.read("my.py").digest != files.read("other/yours.py").digest


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import a", {"a.py", "b.py"}),
        ("from a import x", {"a.py", "b.py"}),
        ("def f():\n    import a", {"a.py", "b.py"}),
        ("from . import a", {"a.py", "b.py"}),
        ("import pack", {"pack/__init__.py", "pack/inner/deep.py", "b.py"}),
        ("from pack.inner import deep", {"pack/__init__.py", "pack/inner/deep.py", "b.py"}),
        ("from plain.net import x", {"plain/net.py"}),
        ("import json, torch, advbench, nosuch", set()),
        ("from my import x", set()),
    ],
)
def test_what_a_file_imports_beside_it_is_read_and_nothing_else(text: str, found: set[str]) -> None:
    write("a.py", "import b\nimport json\n")
    write("pack/__init__.py", "from .inner import deep\n")
    write("pack/inner/deep.py", "import b\n")
    for name in ("b.py", "plain/net.py", "json.py", "advbench/__init__.py", "unused.py", "pack/.hidden/x.py"):
        write(name, "")
    write("my.py", text)
    assert set(files.read("my.py").texts) == {"my.py", *found}


def test_a_folder_of_too_many_files_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_FILES", 2)
    write("my.py", "import a, b")
    write("a.py", "")
    write("b.py", "")
    with pytest.raises(InputError, match=r"at most 2 files .* move it into a folder of its own"):
        files.read("my.py")


# What is imported


def test_files_of_one_name_do_not_clash_nor_do_their_helpers() -> None:
    before = sys.modules.get("helpers")  # another module of that name, if any
    for folder, shift in (("one", 0.1), ("two", 0.2)):
        write(f"{folder}/my.py", ATTACK)
        write(f"{folder}/helpers.py", f"def scale(eps):\n    return {shift}\n")
    x, y = small_data().batch(slice(4))
    found = [
        registry().load("attack", f"{folder}/my.py:Mine")().run(None, x, y, advbench.Threat("linf", 1.0), None)
        for folder in ("one", "two")
    ]
    assert torch.allclose(found[0], (x + 0.1).clamp(0, 1))
    assert torch.allclose(found[1], (x + 0.2).clamp(0, 1))
    assert sys.modules.get("helpers") is before
    assert "my" not in sys.modules


def test_a_changed_file_is_another_one_at_once() -> None:
    write("helpers.py", "def scale(eps):\n    return 0.0\n")
    write("my.py", ATTACK)
    before = advbench.get_attack("my.py:Mine")
    write("helpers.py", "def scale(eps):\n    return eps\n")
    after = advbench.get_attack("my.py:Mine")
    x, y = small_data().batch(slice(4))
    net, threat = small_net().eval(), advbench.Threat("linf", 0.1)
    assert torch.equal(before(net, x, y, threat), x)
    assert not torch.equal(after(net, x, y, threat), x)
    assert type(before) is not type(after)


def test_packages_import_their_own_modules() -> None:
    write("pack/__init__.py", "from .inner import deep\n")
    write("pack/inner/__init__.py", "")
    write("pack/inner/deep.py", "from ..base import HIDDEN\nfrom side import *\nimport pack.base as again\n")
    write("pack/base.py", "HIDDEN = 7\n")
    write("side.py", "WIDTH = 5\n")
    text = "from torch import nn\nimport pack\nfrom pack.inner import deep as d\n"
    text += "def net(channels, height, width, classes):\n    from pack import base\n"
    text += "    return nn.Linear(base.HIDDEN + pack.inner.deep.WIDTH, d.again.HIDDEN)\n"
    write("my.py", text)
    made = registry().load("architecture", "my.py:net")(1, 8, 8, 10)
    assert (made.in_features, made.out_features) == (12, 7)


def test_a_file_is_imported_from_any_thread() -> None:
    write("my.py", DEFENSE)
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(advbench.get_defense("my.py:Mine", stages=(1,))))
    thread.start()
    thread.join()
    assert isinstance(found[0], Defense)


HOSTILE = {
    "x = (\n": r"file my.py, line 1: expected Python, got a syntax error \('\(' was never closed\)",
    "x = '\0'\n": r"file my.py.*: expected Python, got",
    "\n\nraise ValueError('boom')\n": "file my.py, line 3: ValueError when it is imported: boom",
    "raise KeyboardInterrupt2\n": "file my.py, line 1: NameError",
    "import sys\nsys.exit(0)\n": "file my.py, line 2: exits when it is imported",
    "import nosuch\n": "file my.py, line 1: ModuleNotFoundError when it is imported: No module named 'nosuch'",
    "import broken\n": "file broken.py, line 2: ZeroDivisionError when it is imported",
    "x = 1\n": "unknown defense in my.py 'Mine'.* define a subclass of advbench.training.Defense",
    DEFENSE.replace("class Mine", "class Mien"): "unknown defense in my.py 'Mine'.* did you mean 'Mien'",
    "\nclass Mine:\n    pass\n": "file my.py: Mine: expected a subclass of .*Defense, got a class of object",
    "Mine = 3\n": "file my.py: Mine: expected a subclass of advbench.training.Defense, got an object of type int",
}


@pytest.mark.parametrize(("text", "message"), HOSTILE.items(), ids=range(len(HOSTILE)))
def test_a_file_that_cannot_be_used_is_one_line(text: str, message: str) -> None:
    write("broken.py", "\n1 / 0\n")
    write("my.py", text)
    for _ in range(2):  # it stays so
        with pytest.raises(InputError, match=message) as raised:
            advbench.get_defense("my.py:Mine")
        assert "\n" not in str(raised.value)
    assert not [name for name in sys.modules if name.startswith(f"advbench_file_{files.read('broken.py').digest[:16]}")]


def test_what_a_file_prints_is_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    write("my.py", f"print('hello')\n{DEFENSE}")
    advbench.get_defense("my.py:Mine")
    assert capsys.readouterr() == ("", "hello\n")


def test_what_makes_no_net_is_one_line() -> None:
    write("my.py", "Mine = 3")
    with pytest.raises(
        InputError, match=r"expected a function \(channels, height, width, classes\).* got an object of type int"
    ):
        registry().load("architecture", "my.py:Mine")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("pass", "architecture 'net': expected an nn.Module, got an object of type NoneType"),
        ("return nosuch", "file my.py, line 4: NameError when it makes its net"),
        ("exit()", "file my.py.*: exits when it makes its net"),
        (
            "pass\ndef net(width: int = 64): pass",
            r"^file my.py, net: expected the parameters \(channels, height, width, classes, \.\.\.\) first, got "
            r"\(width=64\); its own hyperparameters come after them, with defaults$",
        ),
        ("pass\ndef net(width=64, depth=1, drop=0, out=10): pass", r"first, got \(width=64, depth=1, drop=0, out=10\)"),
        ("pass\ndef net(channels, height, width, classes, depth): pass", r"first, got \(.*, depth\); .*with defaults"),
        ("pass\nclass net(nn.Module):\n    def __init__(self, width=3): pass", r"file my.py, net: .*got \(width=3\)"),
    ],
)
def test_a_function_that_makes_no_net_is_one_line(body: str, message: str) -> None:
    write("my.py", f"from torch import nn\n\ndef net(channels, height, width, classes):\n    {body}\n")
    with pytest.raises(InputError, match=message):
        advbench.build_architecture("my.py:net", small_data(), seed=0)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("my.py", "write my.py:NAME"),
        ("my.py:", "write my.py:NAME"),
        ("my.pt", "--arch my.py:build --defense pretrained --set pretrained.weights=my.pt"),
        ("my.safetensors", "pretrained.weights=my.safetensors"),
        ("nosuch.py:Mine", "expected a Python file, got no such file in "),
        ("nets.py:Mine", "; did you mean 'net.py'?"),
        ("no/my.py:Mine", "expected a Python file, got no folder "),
        ("net.py:Net", "for a net, define a function that returns it, and use --arch net.py:build"),
        ("net.py:make", "got an object of type function; for a net, use --arch net.py:make"),
        ("sub.py:Mine", "expected a Python file, got a folder"),
    ],
)
def test_natural_tries_are_answered_with_what_to_write(name: str, remedy: str) -> None:
    write("my.py", DEFENSE)
    write("net.py", "from torch import nn\nclass Net(nn.Module):\n    pass\ndef make(c, h, w, n):\n    return Net()\n")
    Path("sub.py").mkdir()
    with pytest.raises(InputError) as raised:
        registry().load("defense", name)
    assert remedy in str(raised.value)


# What is stored


RESIZED = """
import torch.nn.functional as F
from advbench.models import Noise
from advbench.training import ErmLoss, Field, TrainParams

class Shift(Noise):
    kind = "shift"

    def __init__(self, most):
        self.most = most

    def values(self):
        return {"most": self.most}

    def attach(self, module):
        import torch
        def shift(layer, args):
            return (args[0].roll(int(torch.randint(0, self.most + 1, ())), 3),)
        module.register_forward_pre_hook(shift)

class Shifted(ErmLoss):
    class Params(TrainParams):
        most: int = Field(default=3, description="largest shift, in pixels")

    def noise(self):
        return Shift(self.params.most)
"""


def test_noise_of_a_file_is_found_again_by_another_process(tmp_path: Path) -> None:
    write("my.py", RESIZED)
    clf = advbench.get_defense("my.py:Shifted", stages=(1,)).fit(small_net(), small_data())
    assert clf.stochastic
    tensors, values = export_classifier(clf)
    digest = files.read("my.py").digest
    assert values["noise"] == {"kind": f"file:{digest}:Shift", "most": 3}
    again = load_classifier(small_net(), read_tensors(tensor_bytes(tensors)), values)
    x, _ = small_data().batch(slice(3))
    assert torch.equal(clf.reseed(1).draws(x, 3), again.reseed(1).draws(x, 3))
    (tmp_path / "weights").write_bytes(tensor_bytes(tensors))
    code = f"""
from pathlib import Path
from advbench.models.saving import load_classifier, read_tensors
from advbench.registry import files
from advbench.testing import small_net
try:
    load_classifier(small_net(), read_tensors(Path("weights").read_bytes()), {values!r})
except Exception as error:
    print(error)
files.know(files.read("my.py"))
print(load_classifier(small_net(), read_tensors(Path("weights").read_bytes()), {values!r}).stochastic)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    refused, loaded = done.stdout.splitlines()
    assert "expected a file given as path/to/my.py:Name" in refused
    assert loaded == "True"


def test_a_net_takes_hyperparameters() -> None:
    text = "from torch import nn\n"
    text += "def net(channels, height, width, classes, depth: int = 1, *, wide=4):\n"
    text += "    layers = [nn.Linear(height * width, wide)] + [nn.Linear(wide, wide) for _ in range(depth - 1)]\n"
    text += "    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(wide, classes))\n"
    write("my.py", text)
    plain = advbench.build_architecture("my.py:net", small_data(), 0)
    deep = advbench.build_architecture("my.py:net", small_data(), 0, {"depth": 3, "wide": 8})
    assert [len(net[1]) for net in (plain, deep)] == [3, 5]
    for params, message in (
        ({"dept": 3}, "unknown hyperparameter of architecture net 'dept'.*did you mean 'depth'"),
        ({"depth": "x"}, "hyperparameter 'depth' of architecture net: expected .*integer"),
    ):
        with pytest.raises(InputError, match=message):
            advbench.build_architecture("my.py:net", small_data(), 0, params)


def test_a_classifier_from_a_file_keeps_its_randomness() -> None:
    write("my.py", RESIZED)
    clf = advbench.get_defense("my.py:Shifted", stages=(1,), most=2).fit(small_net(), small_data())
    assert isinstance(clf, Classifier)
    assert clf.eval().stochastic
