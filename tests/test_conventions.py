"""Promises about the project itself: its documents, its packaging, its error messages."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

import advbench
from advbench.boards.board import read_board
from advbench.cli.app import main
from advbench.cli.options import EXECUTION_OPTIONS, SPEC_OPTIONS
from advbench.registry import hooks
from advbench.report.markdown import main_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SOURCES = [*(ROOT / "advbench").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]


def shell_lines() -> Iterator[str]:
    """The commands in the README's shell blocks, continued lines joined."""
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL):
        yield from (line for line in block.replace("\\\n", " ").splitlines() if line and not line.startswith("#"))


@pytest.mark.skipif("ADVBENCH_TEST_INSTALLED" not in os.environ, reason="only tox installs the wheel")
def test_the_tests_run_against_the_installed_wheel() -> None:
    assert "site-packages" in Path(advbench.__file__).parts


def test_ci_calls_the_readmes_test_command() -> None:
    (command,) = [line for line in shell_lines() if "tox" in line]
    assert command in (ROOT / ".ci" / "run").read_text()


def test_the_readmes_advbench_commands_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    commands = [shlex.split(line.partition("/bin/advbench ")[2]) for line in shell_lines() if "bin/advbench" in line]
    assert len(commands) >= 4
    for command in commands:
        words = 2 if command[0] in ("store", "leaderboard") else 1
        assert main([*command[:words], "--help"]) == 0
        shown = capsys.readouterr().out
        assert all(option in shown for option in command[words:] if option.startswith("--"))


def test_the_readmes_python_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(?:# (\w+\.py)\n)?(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    for file, code in blocks:
        if file:
            (tmp_path / file).write_text(code)
            continue
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_the_readme_documents_every_hook_option_and_package() -> None:
    declared = [name for name in vars(hooks) if name.startswith("advbench_")]
    assert all(f"`{name}`" in README for name in declared)
    house = README[README.index("## How it is built") :]
    sources = [path.relative_to(ROOT / "advbench") for path in SOURCES if path.is_relative_to(ROOT / "advbench")]
    parts = {Path(path.parts[0]).stem for path in sources if not path.parts[0].startswith("__")}
    assert {name for name in parts if f"`{name}" not in house} == set()
    options = (*SPEC_OPTIONS, *EXECUTION_OPTIONS)
    # typer keeps an option's flag in the place of a default; one without it is called like its parameter.
    given = [typing.get_args(option.annotation)[1].default for option in options]
    flags = {flag for flag in given if isinstance(flag, str)}
    assert len(flags) > 25
    assert {flag for flag in flags if f"`{flag}" not in README} == set()


def test_python_examples_of_the_architecture_hold() -> None:
    assert set(advbench.__all__) <= set(dir(advbench)) | set(advbench._LAZY)
    assert all(getattr(advbench, name) is not None for name in advbench.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        advbench.nothing  # noqa: B018


def test_every_expected_error_is_raised_with_words_not_asserts() -> None:
    """An assert in the core may state what the code itself guarantees, never what a user gave."""
    found = [
        f"{path.name}:{node.lineno}"
        for path in SOURCES
        if path.name != "testing.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert) and not (isinstance(node.test, ast.Call) or node.msg is not None)
    ]
    assert found == []


def test_nothing_is_unpickled_anywhere() -> None:
    banned = re.compile(r"import pickle|(?<!safetensors\.)torch\.load\(|allow_pickle=True|joblib")
    assert [p.name for p in SOURCES if banned.search(re.sub(r'"""(?s:.)*?"""', "", p.read_text()))] == []


def test_dependencies_are_pinned_for_the_tests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[<>=\[]", item)[0].lower() for item in project["dependencies"]}
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert needed <= pinned
    assert "torch==2.14.1" in (ROOT / "constraints.txt").read_text()


def test_the_readmes_table_is_that_of_the_digits_board() -> None:
    assert main_table(read_board(ROOT / "leaderboards" / "digits").report) in README
