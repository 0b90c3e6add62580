"""Where a method is from: stated by its class, shown wherever the method is."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pydantic
import pytest

from advbench.cli.app import main
from advbench.registry import registry
from advbench.registry.params import Paper

OWN = """
from advbench.training import ErmLoss, Paper, TrainParams

class Own(ErmLoss):
    paper = Paper(title="A <b> of | one's *own*", authors="Me, You", year=2026, link="https://example.org/a?b=1")
    Params = TrainParams
    presets = {"digits": {"stages": (1,)}}
"""


def test_methods_of_papers_say_which() -> None:
    unstated = [
        entry.name
        for entry in registry().entries("defense")
        if not entry.is_family and vars(registry().load("defense", entry.name)).get("paper") is None
    ]
    assert unstated == ["erm", "pretrained"]


def test_a_paper_is_shown_with_its_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    options = "--attack fgsm --eps 0.1 --limit 20 --executor inline --device cpu --set erm.stages=[1]".split()
    assert main(["run", "--defense", "own.py:Own,erm", *options]) == 0
    methods = pd.read_csv("results/methods.csv").set_index("label")
    assert methods.title["Own"] == "A <b> of | one's *own*"
    assert methods.year["fgsm"] == 2015
    assert methods.link.isna()["erm"]
    shown = r"- Own: Me, You (2026). A &lt;b\> of \| one's \*own\*. <https://example.org/a?b=1>"
    assert shown in Path("results/leaderboard.md").read_text()
    assert '"paper":["Me, You (2026). A ' in Path("results/leaderboard.html").read_text()
    before = Path("results/leaderboard.md").read_bytes()
    assert main(["report", "results"]) == 0
    assert Path("results/leaderboard.md").read_bytes() == before
    capsys.readouterr()
    assert main(["show", "adv_bnn"]) == 0
    assert "Liu, Li, Wu, Hsieh (2019). Adv-BNN: Improved" in capsys.readouterr().out
    Path("own.py").write_text(OWN.replace("Paper(", "dict("))
    assert main(["run", "--defense", "own.py:Own,erm", *options]) == 2
    assert "paper of defense 'Own': expected advbench.training.Paper(title=" in capsys.readouterr().err


@pytest.mark.parametrize("link", ["javascript:alert(1)", "http://a.org", 'https://a.org/"><script>', "https://a b"])
def test_a_link_is_one(link: str) -> None:
    with pytest.raises(pydantic.ValidationError):
        Paper(title="a", authors="b", year=2020, link=link)
