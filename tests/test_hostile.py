"""A thousand hostile inputs from a seeded generator: command lines, specs, records, archives, boards, data files.

Whatever comes in, the command line ends with exit code 0, 1 or 2, without a traceback, and with nothing that a terminal
would obey; with code 2 it prints one line that names its culprit.
"""

from __future__ import annotations

import copy
import io
import json
import os
import random
import shutil
import signal
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tomli_w

from advbench.boards.records import Records
from advbench.cli.app import main
from advbench.cli.options import EXECUTION_OPTIONS, SPEC_OPTIONS
from advbench.errors import printable
from advbench.store.records import record_bytes

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default"), pytest.mark.xdist_group("hostile")]
COUNT = 1000
SECONDS = 60  # after which an input counts as one that hangs
RUN = "--defense erm,bnn --attack fgsm,pgd --eps 0.1 --limit 20 --draws 2 --set pgd.steps=1".split()
SETTINGS = ["--set", "erm.stages=1", "--set", "bnn.stages=1"]
STORE = ["--store", "store"]
Random = random.Random


class Input(NamedTuple):
    """A command line, with what it reads in place, and words of which an error must have one."""

    arguments: list[str]
    culprits: list[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, its store, a board, a submission, an export, and data files."""
    folder = tmp_path_factory.mktemp("hostile")
    with working_in(folder):
        assert main(["run", *RUN, *SETTINGS, *STORE, "--out", "run", "--executor", "inline", "--device", "cpu"]) == 0
        Path("board").mkdir()
        for name in ("spec.toml", "data.json"):
            shutil.copy(Path("run", name), Path("board", name))
        assert main(["leaderboard", "build", "board", *STORE]) == 0
        assert main(["leaderboard", "submit", "run", "--defense", "bnn", "--out", "bnn.zip", *STORE]) == 0
        assert main(["store", "export", "all.tar.gz", *STORE]) == 0
    return folder


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


# Values


def text(rng: Random) -> str:
    """Text that no author had in mind."""
    kinds: list[Callable[[], str]] = [
        lambda: "",
        lambda: rng.choice([" ", "\t", "\n", "a\nb", "\r\n", "\x1b[2J\x1b]0;x\x07", "\x9b31m", "\u202e\u200b", "\x7f"]),
        lambda: rng.choice("abé\udc80") * rng.choice([300, 5000, 12_000]),
        lambda: rng.choice(["0", "-1", "1e999", "nan", "-inf", "0x10", "1_000", "٣", "1/0", "8/255", "true", "none"]),
        lambda: str(rng.randint(2**31, 2**65)),
        lambda: "9" * rng.randint(20, 6000),
        lambda: rng.choice(["[", "{", '"', "'", "\\", "%s%n", "{0}", "$(x)", "=", "@", ":", ",,,", "a:b:c", ".", "--"]),
        lambda: rng.choice("[{(") * rng.randint(1, 2000),
        lambda: rng.choice(
            ["npz:", "imagefolder:", "npz:/dev/zero", "npz:pipe", "imagefolder:pipe", "nosuch:x", "x@y@z"]
        ),
        lambda: rng.choice(["/dev/null", "pipe", "loop", "store", "run/spec.toml", "~nobody7/x", "file:///dev/null/x"]),
        lambda: "a\0b",
        lambda: "".join(
            chr(rng.choice([rng.randrange(1, 0x250), rng.randrange(0x20, 0x11000)])) for _ in range(rng.randint(1, 40))
        ),
    ]
    return rng.choice(kinds)()


def value(rng: Random, depth: int = 0) -> Any:
    """A JSON value of any type."""
    kinds: list[Callable[[], Any]] = [
        lambda: text(rng).encode("utf-8", "replace").decode(),
        lambda: rng.choice([0, -1, 1, 2**31, 2**63, 2**64, 10 ** rng.randint(1, 400)]),
        lambda: rng.choice([0.0, -0.5, 1e-320, 1e308, 0.1, 2.0]),
        lambda: rng.choice([True, False, None]),
        list,
        dict,
    ]
    if depth < 3:
        kinds += [
            lambda: [value(rng, depth + 1) for _ in range(rng.randint(1, 4))],
            lambda: {
                text(rng)[:30].encode("utf-8", "replace").decode(): value(rng, depth + 1)
                for _ in range(rng.randint(1, 4))
            },
        ]
    return rng.choice(kinds)()


def changed(rng: Random, body: Any) -> tuple[Any, str]:
    """JSON in which something at a random place is another value, gone, or new; and the place's name."""
    body = copy.deepcopy(body)
    place, name = body, ""
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return body, name
        key = rng.choice(keys)
        name = str(key) if isinstance(key, str) else name
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.75:
            place = place[key]
            continue
        how = rng.random()
        if how < 0.15:
            del place[key]
        elif how < 0.25 and isinstance(place, dict):
            place[printable(text(rng))[:200]] = value(rng)
        else:
            place[key] = value(rng)
        return body, name


def damaged(rng: Random, raw: bytes) -> bytes:
    """Bytes of which some are others, gone or more."""
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(raw) + 1)
        length = rng.choice([1, 1, 10, 1000])
        more = rng.choice([b"", rng.randbytes(length), raw[start : start + length] * 2, b"\0" * length])
        raw = raw[:start] + more + raw[start + length * rng.randint(0, 1) :]
    return raw[: rng.randrange(len(raw) + 1)] if rng.random() < 0.1 else raw


def head(hostile: str) -> str:
    """How a message shows the beginning of a text."""
    return " ".join(printable(word) for word in hostile.split())[:40]


# Inputs


def command_line(rng: Random) -> Input:
    """A command with an option, a value or an argument too many that is hostile."""
    flags = {
        flag if isinstance(flag := option.annotation.__metadata__[0].default, str) else "--data-root": option.name
        for option in (*SPEC_OPTIONS, *EXECUTION_OPTIONS)
    }
    own = [
        flag
        for flag in flags
        if flag not in ("--executor", "--address", "--sweep/--no-sweep", "--converge/--no-converge")
    ]
    hostile = text(rng)
    commands = {
        "plan": [*RUN, *SETTINGS, *STORE],
        "run": [*RUN, *SETTINGS, *STORE, "--out", "run", "--executor", "inline"],
        "report": ["run", *STORE],
        "show": ["pgd"],
        "status": STORE,
        "leaderboard check": ["board"],
        "leaderboard submit": ["run", "--defense", "bnn", *STORE],
        "store verify": STORE,
        "store export": ["new.tar", *STORE],
        "curve": [*RUN, *SETTINGS, *STORE, "--out", "run", "--executor", "inline"],
        "doctor": [],
    }
    command = rng.choice(["plan", "plan", "run", *commands])
    arguments = list(commands[command])
    flag = rng.choice(own)
    how = rng.random()
    if command in ("plan", "run") and how < 0.6:
        usable = [name for name in own if command == "run" or flags[name] in {each.name for each in SPEC_OPTIONS}]
        flag = rng.choice(usable)
        if flag == "--set":
            plugin, name = (
                rng.choice(["erm", "fgsm", "pgd", text(rng)[:40]]),
                rng.choice(["lr", "steps", text(rng)[:40]]),
            )
            hostile = f"{plugin}.{name}={hostile}"
        arguments += [flag, hostile] if rng.random() < 0.7 else [f"{flag}={hostile}"]
    elif how < 0.9 and arguments:
        at = rng.randrange(len(arguments))
        flag = arguments[max(0, at - 1)]
        arguments[at] = hostile
    else:
        arguments.insert(rng.randrange(len(arguments) + 1), hostile)
    names = [
        flag.strip("-"),
        flags.get(flag, flag),
        head(hostile),
        command,
        *(arg.strip("-") for arg in arguments if arg),
    ]
    return Input([*command.split(), *arguments], [*names, "command", "argument", "option", "file", "'DIR'", "folder"])


def spec_file(rng: Random) -> Input:
    """A spec whose values, or whose bytes, are hostile."""
    path = Path("run", "spec.toml")
    whole = tomllib.loads(path.read_text())
    name = ""
    if rng.random() < 0.3:
        path.write_bytes(damaged(rng, path.read_bytes()))
    else:
        whole, name = changed(rng, whole)
        try:
            path.write_bytes(tomli_w.dumps(whole).encode("utf-8", "surrogatepass"))
        except (TypeError, ValueError):
            lines = [f"{key} = {json.dumps(each)}" for key, each in whole.items()]
            path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    command = rng.choice(
        [["plan", "--spec", str(path)], ["report", "run"], ["store", "export", "x.tar", "--run", "run"]]
    )
    command = [*command, *STORE]
    return Input(
        command,
        [
            "spec.toml",
            "setting",
            "hyperparameter",
            "--set",
            "dataset",
            "architecture",
            "attack",
            "defense",
            "threat",
            "store",
            "data.json",
            "ood",
            name,
        ],
    )


def stored(rng: Random) -> Input:
    """A store with a file that is hostile: sealed anew, or damaged."""
    files = [path for path in Path("store").rglob("*") if path.is_file()]
    path = rng.choice(sorted(files))
    if path.suffix == ".json" and rng.random() < 0.8:
        body, _ = changed(rng, json.loads(path.read_bytes()))
        if isinstance(body, dict) and path.parts[1] == "records":
            body.pop("sha256", None)
            with_numbers = rng.random() < 0.1
            try:
                raw = record_bytes(body)
            except ValueError:
                raw = json.dumps(body).encode()
            path.write_bytes(raw.replace(b":0.", b':NaN,"x":0.', 1) if with_numbers else raw)
        else:
            path.write_text(json.dumps(body))
    else:
        path.write_bytes(damaged(rng, path.read_bytes()))
    run = ["run", *RUN, *SETTINGS, "--out", "run", "--executor", "inline", "--device", "cpu"]
    commands = [
        ["report", "run"],
        run,
        run,
        ["status", "--json"],
        ["status"],
        ["store", "verify"],
        ["store", "gc"],
        ["store", "export", "x.tgz"],
        ["leaderboard", "build", "board"],
        ["plan", *RUN, *SETTINGS],
    ]
    return Input([*rng.choice(commands), *STORE], [path.stem[:12], "store", path.name])


def archive(rng: Random) -> Input:
    """An export or a submission whose bytes, members or content are hostile."""
    if rng.random() < 0.5:
        path = Path("all.tar.gz")
        with tarfile.open(path) as tar:
            members = [(each.name, (tar.extractfile(each) or io.BytesIO()).read()) for each in tar]
        at = rng.randrange(len(members))
        name, raw = members[at]
        how = rng.random()
        if how < 0.3:
            name = text(rng)[:90].encode("utf-8", "replace").decode() or "x"
        elif how < 0.7 and name.endswith(".json"):
            body, _ = changed(rng, json.loads(raw))
            body = body if isinstance(body, dict) else {"body": body}
            body.pop("sha256", None)
            raw = record_bytes(body)
        else:
            raw = damaged(rng, raw)
        members[at] = (name, raw)
        with tarfile.open(path, "w:gz", format=rng.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])) as tar:
            for each, content in members:
                member = tarfile.TarInfo(each)
                member.size = len(content)
                member.type = rng.choice([tarfile.REGTYPE] * 200 + [tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
                tar.addfile(member, io.BytesIO(content))
        if rng.random() < 0.2:
            path.write_bytes(damaged(rng, path.read_bytes()))
        return Input(["store", "import", str(path), "--store", rng.choice(["store", "new"])], [path.name])
    path = Path("bnn.zip")
    with zipfile.ZipFile(path) as zipped:
        parts = {name: zipped.read(name) for name in zipped.namelist()}
    name = rng.choice(sorted(parts))
    parts[name] = hostile_part(rng, name, parts[name])
    if rng.random() < 0.1:
        parts[text(rng)[:100] or "x"] = b"x"
    with zipfile.ZipFile(path, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as zipped:
        for each, content in parts.items():
            zipped.writestr(each.encode("utf-8", "replace").decode(), content)
    if rng.random() < 0.2:
        path.write_bytes(damaged(rng, path.read_bytes()))
    return Input(
        ["leaderboard", "merge", "board", str(path), "--replace"],
        [path.name, "submission", "hyperparameter", "setting", "dataset", "architecture", "attack", "defense"],
    )


def hostile_part(rng: Random, name: str, raw: bytes) -> bytes:
    """A hostile file in place of one of a board's."""
    if rng.random() < 0.25 or name.endswith((".md", ".csv")):
        return damaged(rng, raw)
    try:
        if name == "spec.toml":
            return tomli_w.dumps(changed(rng, tomllib.loads(raw.decode()))[0]).encode()
        if name == "data.json":
            return json.dumps(changed(rng, json.loads(raw))[0]).encode()
        records = dict(Records.from_bytes(raw, name))
        key = rng.choice(sorted(records))
        records[key], _ = changed(rng, records[key])
        return Records(records).to_bytes()
    except (TypeError, ValueError):  # what neither format can hold
        return b"x ="


def board(rng: Random) -> Input:
    """A board with a hostile file, link or pipe."""
    path = rng.choice(
        [
            Path("board", name)
            for name in (
                "spec.toml",
                "data.json",
                "records.jsonl.gz",
                "README.md",
                "results.csv",
                "about.md",
                "references",
            )
        ]
    )
    how = rng.random()
    if how < 0.15:
        path.unlink(missing_ok=True)
        rng.choice(
            [
                lambda: path.symlink_to("../run/spec.toml"),
                lambda: path.symlink_to(path.name),
                lambda: os.mkfifo(path),
                path.mkdir,
            ]
        )()
    elif path.is_file():
        path.write_bytes(hostile_part(rng, path.name, path.read_bytes()))
    else:
        path.write_bytes(rng.randbytes(100))
    commands = [
        ["check", "board"],
        ["check", "board"],
        ["build", "board"],
        ["build", "board", "--out", "page", "--format", "html,latex"],
        ["export", "board", "--out", "infos"],
        ["merge", "board", "bnn.zip", "--replace"],
    ]
    return Input(
        ["leaderboard", *rng.choice(commands)],
        ["board", "setting", "hyperparameter", "dataset", "architecture", "attack", "defense", "submission"],
    )


def data_file(rng: Random) -> Input:
    """A data set of the user's, or a reference, that is hostile."""
    how = rng.random()
    plan = ["plan", *RUN, *SETTINGS, *STORE]
    if how < 0.2:
        body = {
            "name": "a",
            "dataset": "cifar10",
            "architecture": "x",
            "clean_acc": "90",
            "external": 40.0,
            "eps": "8/255",
        }
        Path("reference.json").write_text(json.dumps(changed(rng, body)[0]))
        if rng.random() < 0.3:
            Path("reference.json").write_bytes(damaged(rng, Path("reference.json").read_bytes()))
        return Input(["report", "run", *STORE, "--reference", "reference.json"], ["reference.json"])
    if how < 0.4:
        for part, kind in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
            if rng.random() < 0.95:
                folder = Path("images", part, kind)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / rng.choice(["x.png", "x.jpg", "x.txt", "\x1b.png"])).write_bytes(
                    rng.randbytes(rng.randint(0, 500))
                )
        return Input([*plan, "--dataset", "imagefolder:images"], ["images"])
    arrays: dict[str, Any] = {}
    for part in ("train", "test"):
        arrays[f"x_{part}"] = np.random.default_rng(rng.randrange(99)).random((20, 1, 8, 8), np.float32)
        arrays[f"y_{part}"] = np.arange(20) % 3
    name = rng.choice(sorted(arrays))
    array = arrays[name]
    choices: list[Callable[[], Any]] = [
        lambda: np.array(["a", "b"]),
        lambda: array.astype(rng.choice(["complex64", "float16", "int8", "uint16", "float64", "bool"])),
        lambda: array[:0],
        lambda: array.reshape(-1),
        lambda: array[..., None, None],
        lambda: np.full(array.shape, rng.choice([np.nan, np.inf, -1.0, 300.0, 2.0**62])),
        lambda: np.full(array.shape, rng.choice([-1, 200_000, 2**62])),
        lambda: array[: rng.randint(1, 19)],
        lambda: np.float32(1),
        lambda: np.zeros((20, 0, 8, 8), np.float32),
        lambda: np.array([{}], dtype=object),
    ]
    arrays[name] = rng.choice(choices)()
    if rng.random() < 0.1:
        del arrays[name]
    np.savez("own.npz", **arrays)
    if rng.random() < 0.2:
        Path("own.npz").write_bytes(damaged(rng, Path("own.npz").read_bytes()))
    return Input([*plan, rng.choice(["--dataset", "--ood"]), "npz:own.npz"], ["own.npz", "npz"])


MAKERS = (command_line, command_line, spec_file, stored, stored, archive, board, data_file)


@pytest.mark.parametrize("seed", range(COUNT))
def test_a_hostile_input_ends_in_one_line(
    seed: int, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(shutil.copytree(made, tmp_path / "here"))
    monkeypatch.chdir(place)
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    rng = Random(seed)
    arguments, culprits = MAKERS[seed % len(MAKERS)](rng)
    capsys.readouterr()
    with time_limit(SECONDS, arguments):
        code = main(arguments)
    out, err = capsys.readouterr()
    shutil.rmtree(place)
    assert code in (0, 1, 2), arguments
    assert "Traceback" not in err, (arguments, err[-3000:])
    assert all(line.isprintable() for line in (out + err).split("\n")), arguments
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == (code == 2) or (code == 2 and "Usage:" in out), (arguments, code, err[-3000:])
    for line in errors:
        assert any(culprit.lower() in line.lower() for culprit in culprits if culprit), (arguments, line)


@contextmanager
def time_limit(seconds: int, arguments: list[str]) -> Iterator[None]:
    def end(*_: object) -> None:
        raise AssertionError(f"hangs: {arguments}")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
