"""Question answering on real questions with a real pretrained encoder; minutes long."""

import json
from pathlib import Path

import pytest

from tests import runs
from tests.reference import squad
from tests.test_rte import encoder  # noqa: F401  (a fixture)

SQUAD = Path(__file__).parents[2] / "shared" / "data" / "squad"
FILES = (SQUAD / "train-subset.json", SQUAD / "dev-subset.json")


@pytest.mark.slow
@pytest.mark.skipif(not SQUAD.is_dir(), reason="needs ../shared/data/squad")
def test_the_scores_on_squad_are_the_official_ones(tmp_path: Path, encoder: Path) -> None:  # noqa: F811
    words = ("task=question-answering", "train_examples=320", "eval_examples=200", "epochs=1", "batch_size=16")
    given = ("--train", FILES[0], "--eval", FILES[1], "--method", "rm-lora", "--r", "8", "--lr", "1e-3")
    output = tmp_path / "squad"
    assert runs.call("train", "--model", encoder, *given, *words, "train_eval_examples=0", "--output", output) == 0
    result = json.loads((output / "result.json").read_text())
    answers = json.loads((output / "predictions.json").read_text())
    assert len(answers) == 200
    official = squad.evaluate(_only(json.loads(FILES[1].read_text())["data"], answers), answers)
    assert 100 * result["last"]["eval_f1"] == pytest.approx(official["f1"], abs=1e-9)
    assert 100 * result["last"]["eval_exact_match"] == pytest.approx(official["exact_match"], abs=1e-9)
    assert official["f1"] > 5
    assert result["last"]["running_loss"] < 5.9  # log of the length, which is what a uniform guess costs


def _only(articles: list[dict], answers: dict[str, str]) -> list[dict]:
    """The articles with the questions that were asked."""
    return [
        {"paragraphs": [{**p, "qas": [q for q in p["qas"] if q["id"] in answers]} for p in article["paragraphs"]]}
        for article in articles
    ]
