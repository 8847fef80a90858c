import json
from pathlib import Path

import numpy as np
import pytest

from rmlora.tasks.squad_metric import exact_match, normalise, token_f1
from tests.reference import squad

DEV = Path(__file__).parents[3] / "shared" / "data" / "squad" / "dev-subset.json"
PIECES = (
    "the",
    "The",
    "a",
    "an",
    "A.",
    "cat",
    "Cats",
    "U.S.",
    "the-end",
    "—",
    "a—b",
    "été",
    "1,000",
    "$12",
    "_a_",
    "'",
    "''",
)
BLANKS = (" ", "  ", "\t", "\u00a0", "")


def sentence(draw: np.random.Generator, words: int) -> str:
    return "".join(str(draw.choice(PIECES)) + str(draw.choice(BLANKS)) for _ in range(words))


def test_normalising_is_the_official_rules_letter_by_letter() -> None:
    draw = np.random.default_rng(0)
    texts = [sentence(draw, words) for words in range(7) for _ in range(100)]
    assert [normalise(t) for t in texts] == [" ".join(squad.normalised_words(t)) for t in texts]


def test_scores_are_the_official_ones_for_several_gold_answers() -> None:
    draw = np.random.default_rng(1)
    for _ in range(500):
        prediction = sentence(draw, int(draw.integers(0, 4)))
        golds = [sentence(draw, int(draw.integers(0, 4))) for _ in range(int(draw.integers(1, 4)))]
        qas = [{"id": "q", "question": "?", "answers": [{"text": gold, "answer_start": 0} for gold in golds]}]
        official = squad.evaluate([{"paragraphs": [{"context": "", "qas": qas}]}], {"q": prediction})
        assert official["exact_match"] == 100 * exact_match(prediction, golds)
        assert official["f1"] == pytest.approx(100 * token_f1(prediction, golds), abs=1e-12)


@pytest.mark.parametrize(
    ("answer", "golds", "exact", "f1"),
    [
        ("the cat", ["Cat!"], True, 1.0),
        ("", ["cat"], False, 0.0),
        ("", ["the"], True, 0.0),  # nothing is nothing, but shares no word with it
        ("a cat a dog", ["dog", "cat dog"], True, 1.0),
        ("dog dog", ["dog"], False, 2 / 3),
        ("cat", [], False, 0.0),
    ],
)
def test_special_answers(answer: str, golds: list[str], exact: bool, f1: float) -> None:
    assert exact_match(answer, golds) is exact
    assert token_f1(answer, golds) == pytest.approx(f1)


@pytest.mark.skipif(not DEV.is_file(), reason="needs ../shared/data/squad")
def test_on_the_real_questions_the_scores_are_the_official_ones() -> None:
    articles = json.loads(DEV.read_text(encoding="utf-8"))["data"]
    told = {q["id"]: (p["context"], q) for a in articles for p in a["paragraphs"] for q in p["qas"]}
    draw = np.random.default_rng(2)
    predictions, ours = {}, []
    for name, (context, question) in told.items():
        golds = [answer["text"] for answer in question["answers"]]
        begin = question["answers"][0]["answer_start"] + int(draw.integers(-9, 9))
        predictions[name] = context[max(begin, 0) : begin + int(draw.integers(1, 40))]
        ours.append((exact_match(predictions[name], golds), token_f1(predictions[name], golds)))
    official = squad.evaluate(articles, predictions)
    em, f1 = 100 * np.mean(ours, axis=0)
    assert 0 < official["exact_match"] < 50 < official["f1"] + 30
    assert em == pytest.approx(official["exact_match"], abs=1e-9)
    assert f1 == pytest.approx(official["f1"], abs=1e-9)
