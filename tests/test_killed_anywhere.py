"""Ended by the kernel at any moment, a command leaves no half file, and started again ends where it would have."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from rmlora.compare.rows import without_times
from tests import killing, runs
from tests.compare import studies
from tests.report.fixture import FakeStudy


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    runs.save_bert(folder / "model")
    runs.save_pairs(folder)
    return folder


def training(place: Path, output: Path) -> list[object]:
    told = runs.settings(place / "model", (place / "train.jsonl", place / "dev.jsonl"), output, method="rm-lora")
    output.with_suffix(".yaml").write_text(yaml.safe_dump(told))
    return ["train", output.with_suffix(".yaml"), "--resume"]


def comparing(place: Path, output: Path) -> list[object]:
    told = studies.settings(place / "model", (place / "train.jsonl", place / "dev.jsonl"), output, seeds=[0])
    return ["compare", studies.written(output.with_suffix(".yaml"), told), "--workers", 0]


def reporting(place: Path, output: Path) -> list[object]:
    if not (place / "study").exists():
        FakeStudy(seeds=(0, 1)).write(place / "study")
    return ["report", place / "study", "--output", output]


def same_run(a: Path, b: Path) -> None:
    assert (a / "metrics.jsonl").read_text() == (b / "metrics.jsonl").read_text()
    for name in ("adapter_model.safetensors", "predictions.safetensors"):
        assert runs.equal(load_file(a / name), load_file(b / name)), name
    assert {p.name for p in a.iterdir()} == {p.name for p in b.iterdir()}


def same_study(a: Path, b: Path) -> None:
    assert without_times(studies.rows(a)) == without_times(studies.rows(b))


def same_report(a: Path, b: Path) -> None:
    for name in ("report.html", "report.md", "report.tex"):
        told = [(folder / name).read_text().replace(str(folder), "") for folder in (a, b)]
        assert told[0] == told[1], name


Command = Callable[[Path, Path], list[object]]


def kill_and_go_on(
    place: Path, folder: Path, command: Command, same: Callable[[Path, Path], None], moments: Iterator[killing.Moment]
) -> int:
    """End a command at the moments given, twice per folder, then let it finish; return how often it was ended."""
    whole = folder / "whole"
    assert killing.run(command(place, whole), whole)[0] == 0
    ended = 0
    for number, moment in enumerate(moments):
        output = folder / f"killed-{number // 2}"
        code = killing.run(command(place, output), output, moment)[0]
        assert code <= 0, moment
        ended += code < 0
        killing.assert_whole(output)
        if number % 2:
            assert killing.run(command(place, output), output)[0] == 0, moment
            killing.assert_whole(output)
            same(whole, output)
    return ended


def changes(place: Path, folder: Path, command: Command) -> int:
    output = folder / "counted"
    return killing.run(command(place, output), output)[1]


@pytest.mark.slow
def test_killed_while_saving_and_again_while_going_on_a_run_ends_at_the_same_bits(place: Path, tmp_path: Path) -> None:
    moments = (killing.Moment(30, 0.001), killing.Moment(25, 0.0))
    assert kill_and_go_on(place, tmp_path, training, same_run, iter(moments)) == 2


COMMANDS = {
    "train": (training, same_run, 26),
    "compare": (comparing, same_study, 12),
    "report": (reporting, same_report, 12),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_fifty_moments_nothing_is_half_written_and_everything_goes_on(
    place: Path, tmp_path: Path, name: str
) -> None:
    command, same, count = COMMANDS[name]
    drawn = killing.moments(11, changes(place, tmp_path, command), seconds=1.0)
    ended = kill_and_go_on(place, tmp_path, command, same, (next(drawn) for _ in range(count)))
    assert ended > count // 3
