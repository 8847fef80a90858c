"""Ended by the kernel at any moment, a mixture leaves no half file, and resumed ends at the same bits."""

from pathlib import Path

import pytest

from rmlora.config_source import dump
from rmlora.mixture import complete_mixture
from tests import killing
from tests.mixture.mixtures import LEARNT, config
from tests.test_killed_anywhere import kill_and_go_on


def same_run(a: Path, b: Path) -> None:
    names = {path.name for path in a.iterdir()}
    assert names == {path.name for path in b.iterdir()}
    for name in ("metrics.jsonl", "predictions.safetensors", *(names & set(LEARNT.values()))):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("combine", ["gates", "best"])
def test_killed_anywhere_a_mixture_goes_on(
    combine: str, tmp_path: Path, bert: Path, files: tuple[Path, Path], experts: list[str]
) -> None:
    def training(place: Path, output: Path) -> list[object]:
        told = config(bert, files, output, experts, combine, training={"epochs": 1})
        output.with_suffix(".yaml").write_text(dump(complete_mixture(told)))
        return ["train", output.with_suffix(".yaml"), "--resume"]

    changes = killing.run(training(tmp_path, tmp_path / "counted"), tmp_path / "counted")[1]
    drawn = killing.moments(5, changes, seconds=1.0)
    assert kill_and_go_on(tmp_path, tmp_path, training, same_run, (next(drawn) for _ in range(6))) > 2
