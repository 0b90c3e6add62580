"""README and docs: what they show runs, what there is they describe, and what follows from sources is up to date."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shlex
import shutil
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from advbench.cli.app import app, main
from advbench.cli.options import EXECUTION_OPTIONS, SPEC_OPTIONS, make_spec
from advbench.errors import MissingExtraError
from advbench.grid.spec import resolve
from advbench.models.nets import net_params
from advbench.registry import hooks, registry

pytestmark = pytest.mark.xdist_group("docs")  # one page's examples may build on another's

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = {path.name: path.read_text() for path in (README, *sorted((ROOT / "docs").glob("*.md")))}
TEXT = "\n".join(PAGES.values())
BLOCK = re.compile(r"```(\w+) ?([^\n]*)\n(.*?)```", re.DOTALL)
FLAG = re.compile(r"--[a-z][\w-]*")


def shell_lines(page: str) -> Iterator[tuple[str, bool]]:
    """Commands in a page's shell blocks, continued lines joined, each with whether it is to be run."""
    for language, how, text in BLOCK.findall(PAGES[page]):
        if language == "sh":
            lines = text.replace("\\\n", " ").splitlines()
            stripped = (line.strip() for line in lines)  # a block may stand in a list
            yield from ((line, how == "run") for line in stripped if line and not line.startswith("#"))


def arguments(line: str) -> list[str] | None:
    """Arguments of the advbench command in a line of shell; None where there is none."""
    found = re.search(r"(?:^|/bin/)advbench (.*)", line)
    return shlex.split(found[1], comments=True) if found else None


def parsed(words: list[str]) -> dict[str, Any]:
    """Values of a command's parameters, without running it."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    values: dict[str, Any] = command.make_context("advbench", words).params
    return values


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder as the pages have it in mind: with the boards, and with a finished run in `results`."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "leaderboards", folder / "leaderboards")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        settings = ["--limit", "20", "--eps", "0.15", "--set", "erm.stages=1", "--set", "bnn.stages=1"]
        assert main(["run", "--defense", "erm,bnn", "--attack", "fgsm", "--draws", "2", *settings]) == 0
        yield folder


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_hold(page: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [*sys.path, str(place)])
    names: dict[str, Any] = {"__name__": "__main__"}
    for language, how, text in BLOCK.findall(PAGES[page]):
        if how and how != "run":
            Path(how).write_text(text)
        elif language == "python":
            exec(compile(text, page, "exec", dont_inherit=True), names)
    for line, runs in shell_lines(page):
        words = arguments(line)
        if words is None:
            assert not runs, line
        elif runs:
            assert main(words) == 0, line
        else:
            values = parsed(words)
            if "defenses" in values and (
                values["defenses"] or values["file"]
            ):  # names and hyperparameters are right, too
                options = {option.name: values[option.name] or None for option in SPEC_OPTIONS}
                options["attacks"] = options["attacks"] or ["none"]  # an audit needs none
                with contextlib.suppress(MissingExtraError):
                    resolve(make_spec(**options))


def test_ci_calls_the_readmes_test_command() -> None:
    (command,) = [line for line, _ in shell_lines("README.md") if "tox" in line]
    assert command in (ROOT / ".ci" / "run").read_text()
    assert command in (ROOT / ".github" / "workflows" / "tests.yml").read_text()


def test_the_commands_of_the_workflows_are_right() -> None:
    lines = [line for path in (ROOT / ".github/workflows").glob("*.yml") for line in path.read_text().splitlines()]
    found = [words for line in lines if (words := arguments(line.strip().removeprefix("- run: ")))]
    assert {words[1] for words in found} == {"check", "merge", "build", "site"}
    assert all(parsed(words) for words in found)


def test_the_readme_is_short_and_tables_are_narrow() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 150
    assert [line for line in TEXT.splitlines() if line.startswith("|") and len(line) > 100] == []


def test_links_lead_somewhere() -> None:
    broken = []
    for page, text in PAGES.items():
        folder = README.parent if page == "README.md" else ROOT / "docs"
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", BLOCK.sub("", text)):
            path, _, anchor = link.partition("#")
            target = folder / path if path else folder / page
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
            anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
            if not target.exists() or (anchor and anchor not in anchors):
                broken.append(f"{page}: {link}")
    assert broken == []


def test_every_option_is_described() -> None:
    options = (*SPEC_OPTIONS, *EXECUTION_OPTIONS)
    # typer keeps an option's flag in the place of a default; one without it is called like its parameter.
    given = [typing.get_args(option.annotation)[1].default for option in options]
    flags = {flag for each in given if isinstance(each, str) for flag in each.split("/")}
    assert len(flags) > 25

    def declared(command: Any) -> Iterator[str]:
        for parameter in command.params:
            yield from (flag for flag in (*parameter.opts, *parameter.secondary_opts) if flag.startswith("--"))
        for each in getattr(command, "commands", {}).values():
            yield from declared(each)

    flags |= set(declared(typer.main.get_command(app))) - {"--help"}
    assert {flag for flag in flags if f"`{flag}" not in PAGES["commands.md"]} == set()
    assert set(FLAG.findall(TEXT)) - flags - {"--help", "--force-reinstall", "--no-deps"} == set()


def test_every_hook_and_package_is_described() -> None:
    declared = [name for name in vars(hooks) if name.startswith("advbench_")]
    assert declared
    assert all(f"`{name}`" in PAGES["plugins.md"] for name in declared)
    sources = [path.relative_to(ROOT / "advbench") for path in (ROOT / "advbench").rglob("*.py")]
    parts = {Path(path.parts[0]).stem for path in sources if not path.parts[0].startswith("__")}
    assert {name for name in parts if f"`{name}" not in PAGES["how-it-is-built.md"]} == set()


def test_every_name_and_hyperparameter_is_described() -> None:
    pages = {"defense": "methods.md", "attack": "attacks.md", "dataset": "data.md", "architecture": "data.md"}
    assert {entry.kind for entry in registry().entries()} - {"posterior", "noise", "paper"} == set(pages)
    described = []
    for kind, page in pages.items():
        for entry in registry().entries(kind):  # type: ignore[arg-type]
            assert f"`{entry.shown}`" in PAGES[page], entry.shown
            if entry.is_family or kind == "dataset":
                continue
            try:
                found = registry().load(kind, entry.name)  # type: ignore[arg-type]
            except MissingExtraError:
                continue
            fields = (net_params(found) if kind == "architecture" else found.Params).model_fields
            missing = [name for name in fields if f"`{name}`" not in TEXT]
            assert missing == [], f"{entry.name}: {missing}"
            described += fields
    assert len(described) > 200


def test_every_column_is_described(place: Path) -> None:
    columns = {
        name: path.read_text().partition("\n")[0].split(",")
        for path in (place / "results").glob("*.csv")
        for name in [path.name]
    }
    assert len(columns) > 7
    measured = "auroc|aupr_positive|aupr_negative|accepted_errors"
    common = re.compile(rf"((fgsm|worst)@0\.15|clean)(_low|_high|_attack)?|\w+_(low|high)|({measured})_\w+")
    text = PAGES["metrics.md"]
    assert [
        f"{file}: {name}"
        for file, names in columns.items()
        for name in names
        if f"`{name}`" not in text and not common.fullmatch(name)
    ] == []
    assert {file for file in columns if f"`{file}`" not in text} == set()


def test_what_follows_from_the_sources_is_up_to_date() -> None:
    stale = [path.name for path, content in made().from_sources() if path.read_bytes() != content]
    assert stale == [], "run python docs/make.py"


def test_picture_and_table_are_those_of_the_digits_board() -> None:
    stale = [path.name for path, content in made().from_board() if path.read_bytes() != content]
    assert stale == [], "run python docs/make.py"


def made() -> ModuleType:
    """The script that writes parts of the pages."""
    spec = importlib.util.spec_from_file_location("docs_make", ROOT / "docs" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
