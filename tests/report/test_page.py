"""The leaderboard's page: its data, and what a browser makes of it."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, browsing, in_browser, violations
from reports import HOSTILE, IMAGES, made_report

from advbench.cli.app import main
from advbench.cli.options import make_spec as spec_of_options
from advbench.report import Report
from advbench.report.page import render_page
from advbench.report.references import Reference
from advbench.report.tables import as_rows, read_report
from advbench.report.texts import duration

REFERENCE = Reference(
    model="Known2020<Model>",
    name="A paper & its title",
    venue="ICML 2020",
    link="https://example.org/paper",
    architecture="WideResNet",
    dataset="digits",
    norm="linf",
    eps=8 / 255,
    clean_acc="89.69",
    autoattack_acc="59.53",
    number_forward_passes=1,
    additional_data=True,
    unreliable=False,
    footnote="",
)


@pytest.fixture(scope="module")
def report() -> Report:
    return made_report()


@pytest.fixture(scope="module")
def html(report: Report) -> str:
    return render_page(report, references=[REFERENCE])


def data_of(html: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    values: dict[str, Any] = json.loads(text)
    return values


def test_a_cell_holds_its_accuracy_interval_and_record(html: str, report: Report) -> None:
    data = data_of(html)
    names = [defense["name"] for defense in data["defenses"]]
    place, attack, eps = names.index("pgd_at"), 1, 0
    shown, _, accuracy, start, end = data["cells"][f"{place},{attack},{eps}"]
    # eps 8/255 is the smaller of the two: 0.9 - 0.25 * (1/2 + 1/2 + 1/3)
    assert (data["eps"][eps][0], data["attacks"][attack]["name"]) == ("8/255", "pgd")
    assert (shown, accuracy) == (["0.567", "[0.517, 0.617]"], 0.5667)
    (row,) = data["rows"][start:end]
    assert row[:7] == [0, "pgd_at", IMAGES, 20, 0.5667, 0.5167, 0.6167]
    assert row[16] == hashlib.sha256(f"pgd_at pgd_at pgd {8 / 255} 0".encode()).hexdigest()
    assert data["defenses"][place]["versions"] == '{"torch": "2"}'
    assert data["defenses"][place]["models"] == [[0, "gaussian", 5.0, "key of pgd_at"]]


def test_affinities_are_numbers_and_reasons(html: str, report: Report) -> None:
    data = data_of(html)
    names = [defense["name"] for defense in data["defenses"]]
    pgd = next(each for each in data["affinity"]["attacks"] if each["name"] == "pgd")
    size = len(names)
    source, target = names.index("erm"), names.index("pgd_at")
    cells = report.affinity[(report.affinity.attack == "pgd") & (report.affinity.eps == 0.05)]
    known = cells.set_index(["source", "target"]).affinity["erm", "pgd_at"]
    assert pgd["values"][1][source * size + target] == round(known, 2) == 0.5
    assert pgd["lows"][source * size + target] == 0.4
    # Nothing is known of what failed.
    (reason,) = pgd["values"][1][target * size + source]
    assert data["affinity"]["reasons"][reason] == "an accuracy is missing"


def without_details(report: Report) -> Report:
    """What a folder that holds `results.csv` alone reads as, but for the affinities."""
    empty = {name: getattr(report, name).iloc[:0] for name in ("models", "retention", "uncertainty", "histograms")}
    return replace(report, **empty, affinity=report.affinity.iloc[:0])


def test_what_failed_is_shown_with_its_reason(html: str) -> None:
    assert "<strong>failed</strong>" in html
    assert "failed: Error: &lt;b&gt;bad&lt;/b&gt; &amp; worse" in html
    assert "<b>" not in html
    assert "3 cells failed: Error" in html
    assert html.count("<td></td>") == 0


def test_references_are_marked_and_others_counted(report: Report) -> None:
    other = REFERENCE.model_copy(update={"dataset": "cifar10"})
    html = render_page(without_details(report), references=[other, REFERENCE])
    assert "Known2020&lt;Model&gt;" in html
    assert "Not ranked" in html
    assert re.search(r"<strong>0\.595</strong> <small>AutoAttack, eps 8/255</small>", html)
    assert "1 models reported elsewhere are not shown" in html


LISTS = {"--defense": "defenses", "--attack": "attacks", "--eps": "eps", "--seeds": "seeds"}


def command(data: Mapping[str, Any], key: str) -> str:
    """The command that repeats a cell, as the page's script puts it together."""
    place, attack, eps = map(int, key.split(","))
    first, last = data["cells"][key][3:5]
    seeds = ",".join(str(row[0]) for row in data["rows"][first:last])
    attacked = f"{data['attacks'][attack]['option']} --eps {data['eps'][eps][1]}" if attack >= 0 else "--attack none"
    return f"{data['command']} {data['defenses'][place]['option']} {attacked} --seeds {seeds}"


def test_the_command_shown_makes_a_spec_of_that_cell(html: str, tmp_path: Path) -> None:
    whole = spec_of_options(None, defenses=["erm,pgd_at,adv_bnn"], attacks=["fgsm,pgd"], eps=["8/255,0.05"])
    (tmp_path / "spec.toml").write_text(whole.to_toml())
    data = data_of(html)
    key = next(key for key, cell in data["cells"].items() if key.endswith(",1,0") and cell[2] is not None)
    program, run, *words = shlex.split(command(data, key))
    assert (program, run) == ("advbench", "run")
    given = options(words)
    assert given.pop("--spec") == "spec.toml"
    values: dict[str, Any] = {name: given[flag] for flag, name in LISTS.items() if flag in given}
    spec = spec_of_options(tmp_path / "spec.toml", **values)
    assert (spec.attacks, spec.eps, spec.seeds, spec.dataset) == (("pgd",), (8 / 255,), (0,), "digits")
    assert spec.defenses == (data["defenses"][int(key[0])]["name"],)


def options(words: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for flag, value in zip(words[::2], words[1::2], strict=True):
        if flag == "--spec":
            found[flag] = value
        else:
            found.setdefault(flag, []).append(value)
    return found


@pytest.fixture(scope="module")
def hostile_html() -> str:
    return render_page(made_report(HOSTILE, attacks=HOSTILE[:2]))


def test_hostile_names_stay_text(hostile_html: str) -> None:
    html = hostile_html
    assert len(re.findall(r"<script", html)) == 3  # the theme's, the data's, the page's
    assert len(re.findall(r"</script>", html)) == 3
    assert sorted(defense["name"] for defense in data_of(html)["defenses"]) == sorted(HOSTILE)
    assert "alert(1)" in html
    assert "{{ 7 * 7 }}" in html


def test_the_same_tables_give_the_same_bytes(html: str, report: Report) -> None:
    assert render_page(made_report(), references=[REFERENCE]) == html
    assert not re.search(r"20\d\d-\d\d-\d\d|\d\d:\d\d:\d\d", html)


def test_a_page_of_results_alone_and_one_without_attacks(report: Report) -> None:
    alone = without_details(report)
    assert "<h2>Retention" not in render_page(alone)
    results, differences = report.results, report.differences
    clean = replace(alone, results=results[results.attack == "none"], differences=differences[differences.eps.isna()])
    assert "0.900" in render_page(clean)


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_is_legible_in_both_themes_and_on_the_matrix(html: str) -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    blocks = re.findall(r"\{([^{}]*--paper:[^{}]*)\}", style)
    themes = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in blocks]
    assert len(themes) == 3
    assert themes[1] == themes[2]
    for theme in themes:
        for ink in ("ink", "quiet", "link", "warn"):
            assert all(contrast(theme[ink], theme[paper]) >= 4.5 for paper in ("paper", "shade", "mark"))
        for line in ("#0072b2", "#d55e00", "#009e73", "#cc79a7"):
            assert contrast(line, theme["paper"]) >= 2.9
    squares = re.findall(r"td\.a\d+ \{ background: (#\w{6}); color: #(\w)", style)
    assert len(squares) == 11
    assert all(contrast(colour, f"#{digit * 6}") >= 4.5 for colour, digit in squares)


def big_report() -> Report:
    """50 defenses, 6 attacks, 8 eps, every transfer."""
    names = [f"defense_{index:02}" for index in range(50)]
    return made_report(names, [f"attack_{index}" for index in range(6)], [index / 100 for index in range(1, 9)])


@pytest.fixture(scope="module")
def big_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("big") / "index.html"
    path.write_text(render_page(big_report()))
    return path


@pytest.mark.xdist_group("browser")
def test_a_big_page_is_small(big_page: Path) -> None:
    assert big_page.stat().st_size < 3_000_000


# A browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as started:
        yield started


@pytest.fixture(scope="module")
def page(html: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(html)
    return path


BOARD = "#board tbody th .name"


def choose_eps(browser: Browser, place: int) -> None:
    browser.click(f"#eps label:nth-of-type({place + 1})")


@in_browser
@pytest.mark.xdist_group("browser")
def test_it_opens_from_a_disk_and_fetches_nothing(browser: Browser, page: Path) -> None:
    browser.requested()
    browser.open(page)
    assert browser.run("return document.documentElement.dataset.ready") == "yes"
    assert [url for url in browser.requested() if not url.startswith("data:,")] == [page.as_uri()]
    assert browser.complaints() == []
    assert browser.texts(BOARD) == ["adv_bnn", "pgd_at", "erm"]


@in_browser
@pytest.mark.xdist_group("browser")
def test_columns_sort_both_ways_and_missing_cells_stay_last(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.click("#board .sort", "defense")
    assert browser.texts(BOARD) == ["adv_bnn", "erm", "pgd_at"]
    assert browser.run("return document.querySelector('#board .first').ariaSort") == "ascending"
    browser.click("#board .sort", "defense")
    assert browser.texts(BOARD) == ["pgd_at", "erm", "adv_bnn"]
    choose_eps(browser, 1)
    browser.click("#board .sort", "worst case, 0.05")
    assert browser.texts(BOARD) == ["adv_bnn", "pgd_at", "erm"]
    browser.click("#board .sort", "worst case, 0.05")
    assert browser.texts(BOARD) == ["pgd_at", "adv_bnn", "erm"]
    assert browser.run("return document.querySelectorAll('#board [aria-sort]').length") == 1
    assert browser.texts("#said") == ["Sorted by worst case, 0.05, ascending."]
    # The order follows the radius: at the smaller one nothing failed.
    choose_eps(browser, 0)
    assert browser.texts(BOARD) == ["erm", "pgd_at", "adv_bnn"]


@in_browser
@pytest.mark.xdist_group("browser")
def test_rows_are_filtered_and_eps_is_chosen(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.driver.find_element("id", "find").send_keys("BNN somebody")
    assert browser.texts(BOARD) == ["adv_bnn"]
    assert browser.texts("#said") == ["1 of 3 rows are shown."]
    browser.open(page)
    erm = "#board tr[data-text^='erm'] td[data-eps] strong"
    choose_eps(browser, 1)
    assert browser.texts(erm) == []
    choose_eps(browser, 0)
    # 0.9 - 0.25 * (1/2 + 1/2 + 2/3), which failed at the larger eps.
    assert browser.texts(erm) == ["0.483"]
    assert [text for text in browser.texts("#board thead th") if text.startswith("worst")] == ["worst case, 8/255"]
    assert browser.texts("#said") == ["Worst cases at eps 8/255; rank and area are over all eps."]
    browser.click("#by-attack summary")
    assert browser.texts("#each thead th")[1:] == ["fgsm 8/255", "pgd 8/255"]
    assert browser.complaints() == []


@in_browser
@pytest.mark.xdist_group("browser")
def test_a_number_opens_what_lies_behind_it(browser: Browser, page: Path, report: Report) -> None:
    browser.open(page)
    choose_eps(browser, 1)
    browser.click("#board tr[data-text^='pgd_at'] td[data-eps='1'] .number")
    (text,) = browser.texts("#behind")
    assert "pgd_at, pgd, linf eps 0.05" in text
    assert "the lowest of 2 attacks" in text
    row = report.results.query("defense == 'pgd_at' and source == 'pgd_at' and attack == 'pgd' and eps == 0.05").iloc[0]
    assert row.key in text
    of_area, at_eps = as_rows(report.differences)
    assert difference(at_eps) in text
    assert difference(of_area) not in text
    (shown,) = browser.texts("#behind code")
    data = data_of(page.read_text())
    assert shown == command(data, f"{[d['name'] for d in data['defenses']].index('pgd_at')},1,1")
    assert browser.run("return document.activeElement.closest('dialog') !== null")
    browser.click("#behind button", "Close")
    assert browser.texts("#behind") == []
    browser.click("#board tr[data-text^='pgd_at'] td.main .number")
    one = next(one for one in report.standings if one.defense == "pgd_at")
    assert f"{one.area.value:.3f}" in browser.texts("#behind")[0]
    assert f"{one.worst[0.05].accuracy.value:.3f}" in browser.texts("#behind")[0]
    assert difference(of_area) in browser.texts("#behind")[0]
    browser.click("#behind button", "Close")
    browser.click("#by-attack summary")
    browser.click("#each tbody tr:nth-child(3) td:last-child .number")
    assert "failed: Error: <b>bad</b> & worse" in browser.texts("#behind")[0]
    assert browser.complaints() == []


def difference(pair: dict[str, Any]) -> str:
    shown = f"{pair['difference']:.3f} [{pair['difference_low']:.3f}, {pair['difference_high']:.3f}]"
    return f"{pair['defense']} - {pair['other']}\n{shown}"


@in_browser
@pytest.mark.xdist_group("browser")
def test_affinities_are_drawn_as_they_were_written(browser: Browser, page: Path) -> None:
    """The script's own drawing of the first matrix is that of the file."""
    browser.open(page)
    written = browser.run("return document.querySelector('#affinity tbody').innerHTML")
    change = "const s = document.getElementById('affinity-eps'); s.value = arguments[0];"
    browser.run(change + "s.dispatchEvent(new Event('change'))", "0")
    assert browser.texts("#affinity-which") == ["fgsm 8/255"]
    browser.run(change + "s.dispatchEvent(new Event('change'))", "1")
    drawn = browser.run("return document.querySelector('#affinity tbody').innerHTML")
    assert re.sub(r"\s+", "", drawn) == re.sub(r"\s+", "", written)


@in_browser
@pytest.mark.xdist_group("browser")
def test_an_affinity_opens_what_lies_behind_it(browser: Browser, page: Path, report: Report) -> None:
    browser.open(page)
    data = data_of(page.read_text())
    names = [defense["name"] for defense in data["defenses"]]
    source, target = names.index("erm"), names.index("pgd_at")
    change = "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
    which = [attack["name"] for attack in data["affinity"]["attacks"]].index("pgd")
    browser.run(change + "s.dispatchEvent(new Event('change'))", "affinity-attack", str(which))
    cell = f"#affinity tbody tr:nth-child({source + 1}) td:nth-child({target + 2})"
    browser.click(f"{cell} .number")
    (text,) = browser.texts("#behind")
    assert "pgd from erm to pgd_at" in text
    assert "0.50 [0.40, 0.60]" in text
    rows = report.results.set_index(["defense", "source", "attack", "eps", "seed"])
    assert rows.key["pgd_at", "pgd_at", "pgd", 0.05, 0] in text
    assert rows.key["pgd_at", "pgd_at", "none", 0.0, 0] in text
    (shown,) = browser.texts("#behind code")
    given = options(shlex.split(shown)[2:])
    assert given["--defense"] == ["erm", "pgd_at"]
    assert (given["--attack"], given["--seeds"]) == (["pgd"], ["0"])
    spec = spec_of_options(None, defenses=given["--defense"], attacks=given["--attack"], eps=given["--eps"])
    assert spec.defenses == ("erm", "pgd_at")
    browser.click("#behind button", "Close")
    # Nothing is known of what failed, and the reason stands there.
    browser.click(f"#affinity tbody tr:nth-child({target + 1}) td:nth-child({source + 2}) .number")
    assert "an accuracy is missing" in browser.texts("#behind")[0]
    assert browser.complaints() == []


@in_browser
@pytest.mark.xdist_group("browser")
def test_the_theme_switches_and_stays(browser: Browser, page: Path) -> None:
    paper = "return getComputedStyle(document.documentElement).backgroundColor"
    browser.open(page, scheme="light")
    browser.run("localStorage.clear()")
    browser.open(page, scheme="light")
    light = browser.run(paper)
    # Chromium keeps a page's storage in another process, where the clearing may arrive after the choice: choose again.
    end = time.monotonic() + 20
    while True:
        browser.click("#theme", "Dark theme")
        dark = browser.run(paper)
        assert dark != light
        browser.open(page, scheme="light")
        if browser.run(paper) == dark:
            break
        assert time.monotonic() < end, "the choice does not stay"
    browser.run("localStorage.clear()")
    browser.open(page, scheme="dark")
    assert browser.run(paper) == dark


@in_browser
@pytest.mark.xdist_group("browser")
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1440, "dark")])
def test_it_is_accessible_and_fits_the_screen(browser: Browser, page: Path, width: int, scheme: str) -> None:
    browser.open(page, width, scheme)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    browser.run("for (const each of document.querySelectorAll('details')) each.open = true")
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert violations(browser) == []
    browser.click("#board tbody .number")
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert violations(browser) == []
    assert browser.complaints() == []


@in_browser
@pytest.mark.xdist_group("browser")
def test_hostile_names_are_shown_as_text(browser: Browser, hostile_html: str, tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    path.write_text(hostile_html)
    browser.open(path, 390)
    assert browser.texts(BOARD) == list(HOSTILE)
    browser.click("#board tbody .number")
    assert browser.texts("#behind-title") == [f"{HOSTILE[0]}, area"]
    assert browser.run("return document.documentElement.scrollWidth") <= 390
    assert browser.complaints() == []


@in_browser
@pytest.mark.xdist_group("browser")
def test_without_scripts_tables_and_figures_are_there(browser: Browser, page: Path) -> None:
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.open(page)
        assert browser.driver.find_element("css selector", BOARD).is_displayed()
        drawn = browser.driver.find_elements("css selector", "figure svg")
        assert len(drawn) == 3 + 2 + 2  # curves, retention, histograms
        assert all(one.is_displayed() for one in drawn[:3])
        assert not browser.driver.find_element("id", "controls").is_displayed()
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@in_browser
@pytest.mark.slow
def test_a_big_page_is_sorted_within_a_second(browser: Browser, big_page: Path) -> None:
    """From navigation to the end of a sort, the best of three."""
    spent = []
    for _ in range(3):
        browser.open(page := big_page)
        spent.append(
            browser.run(
                "document.querySelector('#board .sort').click(); document.body.getBoundingClientRect();"
                "return performance.now()"
            )
        )
    assert page.stat().st_size < 3_000_000
    assert min(spent) < 1000, spent


def test_the_finding_stands_above_the_table(report: Report, html: str) -> None:
    said = render_page(report, about="# Title\n\nOne `way` of <b>, e.g. this. It holds.\n\nAnother.")
    assert '<p class="finding">One <code>way</code> of &lt;b&gt;, e.g. this.</p>' in said
    assert "It holds.</p>" in said
    assert "<p>Another.</p>" in said
    # Else it is made of the table.
    first = report.standings[0]
    expected = f"<code>{first.defense}</code> keeps {first.area.value:.3f} of the area from eps 8/255 to 0.05"
    assert f'<p class="finding">{expected}; indistinguishable from <code>pgd_at</code>.</p>' in html


def test_a_published_board_says_when_and_how_to_add_to_it(
    report: Report, html: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = render_page(report, beside=["spec.toml"], date="2026-01-31", board="my board")
    assert "2026-01-31; torch 2" in page
    (commands,) = re.findall(r"<pre><code>(.*?)</code></pre>", page, re.DOTALL)
    lines = [shlex.split(unescape(line)) for line in commands.splitlines()]
    assert [line[:3] for line in lines] == [
        ["advbench", "new", "defense"],
        ["advbench", "run", "--spec"],
        ["advbench", "leaderboard", "submit"],
        ["advbench", "leaderboard", "merge"],
    ]
    assert lines[1][3] == "leaderboards/my board/spec.toml"
    with monkeypatch.context() as patch:  # the names are those of the template
        patch.chdir(tmp_path)
        assert main(lines[0][1:]) == 0
        file, _, name = lines[1][5].partition(":")
        assert f"class {name}(" in (tmp_path / file).read_text()
    assert lines[2][-1] == name
    assert lines[3][-1] == f"{name}.advbench.zip"
    assert "Add your defense" not in html


@in_browser
@pytest.mark.xdist_group("browser")
def test_a_curve_is_singled_out_by_mouse_and_by_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    looks = """return [...document.querySelector('svg.curves').querySelectorAll('.line')].map((line) =>
        [line.querySelector('text').textContent, getComputedStyle(line.querySelector('.curve')).strokeWidth,
         getComputedStyle(line).opacity])"""

    def bold() -> list[str]:
        return [name for name, width, _ in browser.run(looks) if width == "3.5px"]

    assert bold() == []
    browser.run("document.querySelector('svg.curves .line[tabindex=\"0\"]').focus()")
    assert bold() == ["adv_bnn"]
    assert {opacity for _, width, opacity in browser.run(looks) if width != "3.5px"} == {"0.3"}
    press = browser.driver.switch_to.active_element.send_keys
    press("\ue015")  # arrow down
    assert bold() == ["pgd_at"]
    assert (
        len(browser.driver.find_elements("css selector", "figure:not([hidden]) .line[tabindex='0']")) == 2
    )  # of each chart that is shown
    browser.run("document.activeElement.blur()")
    text = next(e for e in browser.driver.find_elements("css selector", "svg.curves .line > text") if e.text == "erm")
    browser.run("arguments[0].scrollIntoView({block: 'center'})", text)
    from selenium.webdriver import ActionChains

    ActionChains(browser.driver).move_to_element(text).perform()
    assert bold() == ["erm"]


@in_browser
@pytest.mark.xdist_group("browser")
def test_the_ranking_is_on_the_first_screen(browser: Browser, tmp_path: Path) -> None:
    names = [f"a_defense_of_a_long_name_{index}" for index in range(19)]
    path = tmp_path / "index.html"
    path.write_text(render_page(made_report(names, ("fgsm", "pgd", "eot_pgd"), [0.05, 0.1, 0.15, 0.2, 0.3])))
    edges = "const r = document.querySelector('td.main').getBoundingClientRect(); return [r.right, r.bottom]"
    for width in (390, 1440):
        browser.open(path, width)
        right, bottom = browser.run(edges)
        assert right <= width
        assert bottom <= 800
    wide = "const s = document.querySelector('#board').parentElement; return s.scrollWidth <= s.clientWidth"
    assert browser.run(wide)
    assert path.stat().st_size < 1_000_000
    # No chart is drawn larger than another.
    sizes = """return [...document.querySelectorAll('svg')].map((drawn) =>
        [drawn.getBoundingClientRect().width, drawn.width.baseVal.value])"""
    browser.run("for (const each of document.querySelectorAll('details')) each.open = true")
    assert all(drawn in (0, natural) for drawn, natural in browser.run(sizes))


@pytest.mark.parametrize("board", ["digits", "digits-l2", "mnist"])
def test_the_eps_shown_first_is_the_one_at_which_defenses_differ_most(board: str) -> None:
    report = read_report(Path(__file__).parents[2] / "leaderboards" / board)
    html = render_page(report, board=board, home="../index.html")
    own = report.results.query("source == defense and attack != 'none'")
    spread = (
        own.groupby(["eps", "defense", "attack"]).accuracy.mean().groupby(["eps", "defense"]).min().groupby("eps").std()
    )
    (shown,) = re.findall(r'<input type="radio" name="eps" value="(\d)" checked>', html)
    assert report.radii()[int(shown)] == spread.idxmax()
    assert set(re.findall(r'<th scope="col" data-eps="(\d)" data-column="worst">', html)) == {shown}


def test_first_table_shows_what_an_attack_on_the_uncertainty_leaves() -> None:
    report = read_report(Path(__file__).parents[2] / "leaderboards" / "digits")
    html = render_page(report, board="digits", home="../index.html")
    last = len(report.radii()) - 1
    known = report.uncertainty.query("attack == 'certain' and eps == 0.2").groupby("defense").auroc_total.mean()
    kept = report.retention.query("attack == 'certain' and eps == 0.2 and measure == 'total' and kept == 1")
    areas = kept.groupby("defense").area.mean()
    (body,) = re.findall(r'<table id="board">.*?<tbody>(.*?)</tbody>', html, re.DOTALL)
    rows = {one.defense: text for one, text in zip(report.standings, body.split("</tr>"), strict=False)}
    assert len(rows) == len(known) == len(areas) == 17
    for defense, text in rows.items():
        cell = (
            rf'<td data-eps="{last}"(?: hidden)? data-v="([^"]*)">\s*<button[^>]* data-what="(\w+)" data-text="([^"]*)"'
        )
        (retention, first, shown), (auroc, second, text_of_auroc) = re.findall(cell, text)
        assert (first, second) == ("retention", "AUROC")
        assert float(retention) == pytest.approx(areas[defense], abs=1e-6)
        assert float(shown.split()[0]) == pytest.approx(areas[defense], abs=6e-4)
        assert float(auroc) == pytest.approx(known[defense], abs=1e-6)
        assert float(text_of_auroc) == pytest.approx(known[defense], abs=6e-4)
    names, tables = [one.defense for one in report.standings], report.differences.set_index(["defense", "other"])
    shown = data_of(html)["differences"]
    assert len(shown) == len(tables)
    assert shown == sorted(shown)
    for one, other, place, difference, _ in shown:
        assert one < other
        pair, sign = (
            ((names[one], names[other]), 1)
            if (names[one], names[other]) in tables.index
            else ((names[other], names[one]), -1)
        )
        known = tables.loc[[pair]]
        known = known[known.eps.isna() if place < 0 else known.eps == report.radii()[place]]
        assert float(difference) == pytest.approx(sign * known.difference.item(), abs=6e-4)
    seconds = report.models.groupby("defense").seconds.median()
    assert f"<strong>{duration(seconds['adv_bnn'])}</strong>" in rows["adv_bnn"]
    spent = report.models.seconds.sum() + report.results.query("source == defense").seconds.sum()
    assert f"{duration(spent)} of trainings and attacks on x86_64" in html
    assert '<a href="../index.html">All leaderboards</a>' in html
