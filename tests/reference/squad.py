"""SQuAD 1.1's evaluation, rule after rule and as slowly as can be, from the data set as it lies on disk.

The rules: an answer is lower-cased, every character of ASCII punctuation is dropped, the words "a", "an" and "the" are
dropped, blanks are made one. Exact match: the same string as one of the gold answers. F1: over the words as multisets,
0 if none is shared; the best over the gold answers. A question without prediction counts, with 0. Both in per cent.
"""

from typing import Any

PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def normalised_words(text: str) -> list[str]:
    kept = ""
    for character in text.lower():
        if character not in PUNCTUATION:
            kept += character
    # a word ends where a letter, digit or underscore meets anything else, as for an article in "a—b"
    pieces: list[str] = []
    for character in kept:
        is_word = character.isalnum() or character == "_"
        if pieces and pieces[-1] and (pieces[-1][-1].isalnum() or pieces[-1][-1] == "_") == is_word:
            pieces[-1] += character
        else:
            pieces.append(character)
    without = ""
    for piece in pieces:
        without += " " if piece in ("a", "an", "the") else piece
    return without.split()


def exact(prediction: str, gold: str) -> bool:
    return " ".join(normalised_words(prediction)) == " ".join(normalised_words(gold))


def f1(prediction: str, gold: str) -> float:
    ours, theirs = normalised_words(prediction), normalised_words(gold)
    left, same = list(theirs), 0
    for word in ours:
        if word in left:
            left.remove(word)
            same += 1
    if same == 0:
        return 0.0
    precision, recall = same / len(ours), same / len(theirs)
    return 2 * precision * recall / (precision + recall)


def evaluate(articles: list[dict[str, Any]], predictions: dict[str, str]) -> dict[str, float]:
    """Return exact_match and f1 in per cent over every question of the articles (`data` of a SQuAD file)."""
    total, matches, summed = 0, 0, 0.0
    for article in articles:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                total += 1
                if question["id"] not in predictions:
                    continue
                prediction = predictions[question["id"]]
                golds = [answer["text"] for answer in question["answers"]]
                matches += max(exact(prediction, gold) for gold in golds)
                summed += max(f1(prediction, gold) for gold in golds)
    return {"exact_match": 100.0 * matches / total, "f1": 100.0 * summed / total}
