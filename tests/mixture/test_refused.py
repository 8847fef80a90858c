"""What a mixture cannot honour is one line before anything is written."""

from pathlib import Path
from typing import Any

import pytest

from rmlora.config_source import dump
from rmlora.errors import RmloraError
from rmlora.mixture import complete_mixture
from rmlora.scopes import check, run
from tests import runs
from tests.mixture.mixtures import config

Files = tuple[Path, Path]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixture": {"experts": ["a"]}}, "needs the folders of two trained adapters or more, got 1"),
        ({"mixture": {"experts": ["a", "b", "./a"]}}, 'mixture.experts has "./a" twice'),
        ({"method": "rm-lora"}, "where method=rm-lora has nothing to act on; .* give method=lora here"),
        ({"method": "full"}, "method=full has nothing to act on"),
        ({"task": "causal-lm"}, "scope=mixture needs one of text-classification, .*, not causal-lm"),
        ({"init_adapter": "a"}, "has no init_adapter=a: the experts bring their own"),
        ({"lora": {"use_dora": True}}, "has no lora.use_dora=True"),
        ({"training": {"gradient_checkpointing": True}}, "has no training.gradient_checkpointing=True"),
        ({"evaluation": {"ensemble": 3}}, "leave it out with scope=mixture"),
    ],
)
def test_contradictions_are_known_without_reading_anything(changes: dict[str, Any], message: str) -> None:
    told = {"model": "m", "scope": "mixture", "mixture": {"experts": ["a", "b"]}} | changes
    from rmlora.config_source import resolve

    with pytest.raises(RmloraError, match=message) as refused:
        check(resolve(told))
    assert "\n" not in str(refused.value)


def test_experts_that_do_not_fit_leave_no_folder(
    tmp_path: Path, bert: Path, files: Files, experts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    other = runs.save_bert(tmp_path / "other", hidden=16)
    bad = {
        "No adapter folder at": [experts[0], str(tmp_path / "nowhere")],
        "has no adapter_config.json": [experts[0], str(bert)],
    }
    for message, given in bad.items():
        told = config(bert, files, tmp_path / "run", given)
        path = tmp_path / "run.yaml"
        path.write_text(dump(complete_mixture(told)))
        capsys.readouterr()
        assert runs.call("train", path) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    with pytest.raises(RmloraError, match="whose weights have other hashes"):
        run(config(other, files, tmp_path / "run", experts))
    assert not (tmp_path / "run").exists()


def test_a_dry_run_writes_nothing(
    tmp_path: Path, bert: Path, files: Files, experts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(dump(complete_mixture(config(bert, files, tmp_path / "run", experts))))
    before = runs.files_of(tmp_path)
    assert runs.call("train", path, "--dry-run") == 0
    told = capsys.readouterr().out
    assert "Expert same: " in told
    assert "Dry run: nothing was written." in told
    assert runs.files_of(tmp_path) == before
