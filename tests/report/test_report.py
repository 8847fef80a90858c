"""The report: everything it must hold, from the files alone, the same twice, and everything escaped."""

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rmlora.report.curves import Point, curve, draw_curves
from rmlora.report.figures import mean_spectrum
from rmlora.report.write import write_report
from tests.report import fixture
from tests.report.fixture import METHODS, FakeStudy

NASTY = '<script>alert("x")</script> & |a| $b$ _c_ \\input{d} `e` %f #g'


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = FakeStudy(ranks=(8, 32), select=(5e-4, 1e-3)).write(tmp_path_factory.mktemp("report") / "study")
    for cell in (folder / "cells").iterdir():
        fixture.adapter(cell)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(study: Path) -> str:
    return (study / "report" / "report.html").read_text()


class Wellformed(HTMLParser):
    """Every element that is opened is closed, in order; collects what is named and referred to."""

    VOID = ("meta", "link", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(page: str) -> Wellformed:
    parser = Wellformed()
    parser.feed(page)
    assert not parser.open
    return parser


def test_the_page_stands_alone(page: str) -> None:
    found = parsed(page)
    assert not found.tags & {"script", "iframe", "object", "embed", "form", "img"}
    assert all(address.startswith(("#", "data:")) for address in found.addresses)
    assert not re.search(r"url\((?!#)|@import", page)


def test_no_name_is_given_twice_and_none_is_missing(page: str) -> None:
    found = parsed(page)
    assert len(found.ids) == len(set(found.ids))
    referred = set(re.findall(r"url\(#([^)]+)\)", page)) | {a[1:] for a in found.addresses if a.startswith("#")}
    assert referred <= set(found.ids)


def test_every_figure_of_a_setting_is_there(page: str) -> None:
    ids = set(parsed(page).ids)
    names = ("differences", "eval", "train", "gap", "rank", "orthogonality", "scatter", "spectra")
    assert {f"{name}-{number}" for name in names for number in (1, 2)} <= ids


def test_tables_hold_means_intervals_and_verdicts(study: Path) -> None:
    text = (study / "report" / "report.md").read_text().replace("\\", "")
    rows = [json.loads(line) for line in (study / "rows.jsonl").read_text().splitlines()]
    values = [
        100 * row["last"]["eval_accuracy"]
        for row in rows
        if (row["label"], row["r"], row["kind"]) == ("RM-LoRA", 8, "final")
    ]
    assert f"| RM-LoRA | {sum(values) / 3:.2f} ± " in text
    assert "RM-LoRA: better than LoRA (accuracy +" in text
    assert "GM-LoRA: no evidence of a difference from LoRA (accuracy +" in text
    assert re.search(r"\+5\.\d = 2\d(\.\d)? of 400 examples; 95% interval", text)
    assert "one example is 0.25 points" in text
    for head in ("T without head", "orthogonality loss", "its floor", "masked share", "effective rank", "McNemar"):
        assert head in text
    assert "Rank counts singular values above 9.2e-05 of the largest" in text
    assert "147,456" in text  # I without head: 18432 * 8


def test_the_budget_of_learning_rates_is_told(study: Path) -> None:
    assert "| 0.0005, 0.001 | 2 | 0.001 |" in (study / "report" / "report.md").read_text()


def test_every_run_has_its_command_and_the_environment_is_there(study: Path, page: str) -> None:
    for row in map(json.loads, (study / "rows.jsonl").read_text().splitlines()):
        if row["kind"] == "final":
            assert f"rmlora train {study}/{row['folder']}/config.yaml output=again/{row['cell']}" in page
    assert "versions: torch" in page
    assert "2.13.0" in page


def test_the_same_files_give_the_same_report(study: Path, tmp_path: Path) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    before = contents(study)
    write_report(study, tmp_path / "again")
    assert contents(study) == before
    assert contents(tmp_path / "again") == contents(study / "report")


def test_figures_are_files_that_markdown_finds(study: Path) -> None:
    linked = re.findall(r"\]\((figures/[^)]+)\)", (study / "report" / "report.md").read_text())
    assert len(linked) > 15
    for name in linked:
        assert ET.parse(study / "report" / name).getroot().get("viewBox")


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    methods = {"LoRA": METHODS["LoRA"], NASTY: METHODS["RM-LoRA"]}
    made = FakeStudy(methods=methods, tasks=(NASTY,), model=NASTY)
    folder = made.write(tmp_path_factory.mktemp("nasty") / "study", NASTY)
    (folder / "environment.json").write_text(json.dumps({NASTY: NASTY}))
    write_report(folder)
    return folder / "report"


def test_the_page_escapes_everything(nasty: Path) -> None:
    page = (nasty / "report.html").read_text()
    assert "script" not in parsed(page).tags
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 10


def test_figures_escape_everything(nasty: Path) -> None:
    figures = list((nasty / "figures").iterdir())
    assert figures
    for path in figures:
        root = ET.parse(path).getroot()
        assert not [element for element in root.iter() if element.tag.endswith("script")]
    assert any(NASTY in "".join(ET.parse(path).getroot().itertext()) for path in figures)


def test_markdown_and_latex_escape_everything(nasty: Path) -> None:
    markdown = (nasty / "report.md").read_text().split("```")[0]
    assert not re.search(r"(?<!\\)<", markdown)
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines[:4]}) == 1
    latex = (nasty / "report.tex").read_text()
    body = "\n".join(line for line in latex.splitlines() if not line.startswith("%"))
    assert r"\input" not in body
    assert r"\textbackslash{}input\{d\}" in body
    assert not re.search(r"(?<!\\)[%#_]", body)
    assert body.count(r"\begin{tabular}") == body.count(r"\bottomrule") > 1


def test_a_grid_has_its_heat_map(tmp_path: Path) -> None:
    folder = fixture.grid(tmp_path / "grid")
    names = {path.stem for path in write_report(folder)}
    assert "heat-1" in names
    drawn = "".join(ET.parse(folder / "report" / "figures" / "heat-1.svg").getroot().itertext())
    for text in ("0.0001", "0.001", "0.01", "0.25", "0.5", "weight of the penalty"):
        assert text in drawn


def test_published_numbers_stand_beside_the_measured(tmp_path: Path) -> None:
    folder = FakeStudy(methods={label: METHODS[label] for label in ("LoRA", "RM-LoRA")}).write(tmp_path / "study")
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    told = [row | {"published": "76.97"} if row["label"] == "LoRA" else row for row in rows]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    lines = write_report(folder)[1].read_text().splitlines()
    table = [line for line in lines if line.startswith(("| method", "| LoRA", "| RM-LoRA"))][:3]
    assert [line.split("|")[-2].strip() for line in table] == ["published", "76.97", "-"]


def test_without_lora_the_first_method_is_the_baseline(tmp_path: Path) -> None:
    two = {label: METHODS[label] for label in ("GM-LoRA", "RM-LoRA")}
    text = write_report(FakeStudy(methods=two).write(tmp_path / "study"))[1].read_text()
    assert "Everything is compared with GM-LoRA." in text


def test_one_method_and_one_seed_is_a_report_too(tmp_path: Path) -> None:
    alone = FakeStudy(methods={"LoRA": METHODS["LoRA"]}, seeds=(0,)).write(tmp_path / "study")
    assert "nothing beside LoRA" in write_report(alone)[1].read_text()


def test_one_seed_says_so(tmp_path: Path) -> None:
    text = write_report(FakeStudy(seeds=(0,)).write(tmp_path / "study"))[1].read_text()
    assert "too few runs for an interval" in text
    assert "one seed: what another seed would have done is unknown" in text


def test_a_curve_is_the_mean_over_the_seeds_that_have_the_epoch() -> None:
    runs = [[{"epoch": 1, "gap": 0.1}, {"epoch": 2, "gap": 0.2}], [{"epoch": 1, "gap": 0.3}, {"epoch": 2, "gap": None}]]
    points = curve(runs, "gap")
    assert [(p.epoch, round(p.mean, 6)) for p in points] == [(1, 0.2), (2, 0.2)]
    assert [round(p.spread, 4) for p in points] == [0.1414, 0.0]


def test_a_steep_start_is_cut_off_and_said_to_be() -> None:
    steep = [Point(epoch, 1 - 0.9**epoch if epoch > 2 else -9.0, 0.0) for epoch in range(1, 31)]
    styles = {"a": {"color": "red", "marker": "o"}}
    assert "(start cut off)" in draw_curves("steep", {"a": steep}, styles, "loss")
    assert "(start cut off)" not in draw_curves("flat", {"a": steep[10:]}, styles, "loss")
    assert "(start cut off)" not in draw_curves("short", {"a": steep[:8]}, styles, "loss")


def test_a_mean_spectrum_starts_at_one(study: Path) -> None:
    from rmlora.analysis.adapters import inspect_adapter

    spectrum = mean_spectrum(inspect_adapter(next((study / "cells").iterdir())))
    assert spectrum[0] == pytest.approx(1.0)
    assert spectrum == sorted(spectrum, reverse=True)
