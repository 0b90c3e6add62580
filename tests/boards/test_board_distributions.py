"""Boards with plugins of other distributions: anybody can check, build and report on them without these."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from advbench.cli.app import main
from advbench.registry import plugins, registry

SAMPLE = Path(__file__).parents[1] / "third_party" / "advbench_sample"
OPTIONS = (
    "--attack corner,fgsm,worst_case --eps 0.1 --limit 20 --draws 2 --device cpu --affinity none --executor inline "
    '--set worst_case.attacks=["corner"] --set erm.stages=[1] --set smooth.stages=[1]'
).split()
CHECK = ["leaderboard", "check", "board"]
RERUN = [*CHECK, "--rerun", "9", "--executor", "inline", "--device", "cpu"]


@contextmanager
def installed(version: str = "", folder: str = "") -> Iterator[None]:
    """The sample distribution is installed in the block, editable with a folder; not at all without a version."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.partition(".")[0] == SAMPLE.name]:
            patch.delitem(sys.modules, name)
        if version:
            site = Path(f"site-{version}{folder and '-editable'}").absolute()
            info = site / f"advbench_sample-{version}.dist-info"
            if not site.exists():
                shutil.copytree(SAMPLE, site / SAMPLE.name)
                info.mkdir()
                (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: advbench-sample\nVersion: {version}\n")
                (info / "entry_points.txt").write_text("[advbench]\nadvbench_sample = advbench_sample\n")
            if folder:
                source = {"url": f"file://{site}", "dir_info": {"editable": True}}
                (info / "direct_url.json").write_text(json.dumps(source))
            patch.syspath_prepend(str(site))
        importlib.invalidate_caches()
        registry.cache_clear()
        yield
        for name in [name for name in sys.modules if name.partition(".")[0] == SAMPLE.name]:
            del sys.modules[name]
    registry.cache_clear()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A board under attacks of a distribution, and submissions of its defense from a release and from a checkout."""
    folder = tmp_path_factory.mktemp("made")
    real = plugins._checkout

    def checkout(distribution: importlib.metadata.Distribution) -> str | None:  # advbench itself as a release
        return None if distribution.name == "advbench" else real(distribution)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(plugins, "_checkout", checkout)
        with installed("1.2.3"):
            assert main(["run", "--defense", "erm", *OPTIONS[:-2], "--out", "run"]) == 0
            assert main(["run", "--defense", "smooth", *OPTIONS[:-4], *OPTIONS[-2:], "--out", "other"]) == 0
            assert main(["leaderboard", "submit", "other", "--defense", "smooth"]) == 0
        with installed("1.2.3", "editable"):
            of_fgsm = [each.replace("corner,fgsm,worst_case", "fgsm") for each in OPTIONS]
            options = [*of_fgsm[: of_fgsm.index("--set")], *OPTIONS[-2:]]
            assert main(["run", "--defense", "smooth", *options, "--out", "checkout"]) == 0
            assert main(["leaderboard", "submit", "checkout", "--defense", "smooth", "--out", "checkout.zip"]) == 0
            assert main(["run", "--defense", "erm", *options[:-2], *OPTIONS[-4:-2], "--out", "plain"]) == 0
        for name in ("run", "plain"):
            board = f"board-{name}"
            shutil.copytree(name, board, ignore=shutil.ignore_patterns("*.csv", "*.md", "*.html"))
            with installed():
                assert main(["leaderboard", "build", board, "--store", ".advbench/store"]) == 0
        shutil.move("board-run", "board")
        with installed():
            assert main(["leaderboard", "merge", "board", "smooth.advbench.zip"]) == 0
            yield folder


def test_a_board_is_checked_and_reported_without_the_distribution(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(CHECK) == 0, capsys.readouterr().err
    assert main(["report", "other"]) == 0, capsys.readouterr().err
    index = json.loads(Path("board/files/index.json").read_text())
    assert set(index["choices"]) == {"smooth", "corner", "worst_case"}
    assert index["choices"]["smooth"]["component"]["version"] == "1.2.3"
    due = "`smooth` uses smooth of advbench-sample, version 1.2.3, which is needed to recompute it and for nothing else"
    assert due in Path("board/README.md").read_text()
    with installed("1.3"):  # the code of another version does not count
        assert main(CHECK) == 0, capsys.readouterr().err


def test_a_rerun_says_which_cells_it_leaves_out_and_why(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = "8 of 8 cells of 2 defenses, 2 cells recomputed, 2 of them equal to the last digit; 6 cells left out: "
    for version in ("", "1.3"):
        with installed(version):
            assert main(RERUN) == 0, capsys.readouterr().err
        said = capsys.readouterr().out
        assert counts in said
        assert "smooth is based on smooth of advbench-sample, version 1.2.3, which is not installed here" in said
    with installed("1.2.3"):
        assert main(RERUN) == 0, capsys.readouterr().err
    assert "8 cells recomputed, 8 of them equal to the last digit\n" in capsys.readouterr().out


def test_what_advbench_contains_is_not_taken_from_the_index(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = json.loads(Path("board/files/index.json").read_text())
    index["choices"]["erm"] = index["choices"]["smooth"]
    shutil.copytree("board", "forged")
    Path("forged/files/index.json").write_text(json.dumps(index, indent=1) + "\n")
    assert main(["leaderboard", "check", "forged"]) == 1
    assert "index.json" in capsys.readouterr().err


def test_a_checkout_of_a_distribution_is_not_merged_into_a_board_of_a_release(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["leaderboard", "merge", "board-plain", "checkout.zip"]) == 2
    assert "expected a release of advbench-sample, which others can install, got a checkout" in capsys.readouterr().err
