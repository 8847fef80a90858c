"""Exact match and F1 of answers in words, normalised as SQuAD 1.1's own evaluation does."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalise(text: str) -> str:
    """Reduce an answer to what is compared: lower case, without ASCII punctuation, articles and extra blanks.

    Punctuation is deleted and not made a blank, and it goes before the articles: `the-end` is one word, `theend`.

    Example:
        >>> normalise("The  U.S. (an example)")
        'us example'

    Source:
        Rajpurkar et al., SQuAD, arXiv:1606.05250, Section 6, and the rules of its evaluation script, version 1.1.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(answer: str, golds: Sequence[str]) -> bool:
    """Tell whether an answer is one of the right ones, after normalising both.

    Args:
        answer: as predicted; "" is right only where a gold answer normalises to nothing.
        golds: right answers; with none, nothing is right.

    Example:
        >>> exact_match("the cat.", ["a dog", "Cat"])
        True
    """
    return normalise(answer) in {normalise(gold) for gold in golds}


def token_f1(answer: str, golds: Sequence[str]) -> float:
    """Compute the F1 of an answer's words against the gold answer it fits best.

    Words count as often as they occur. With no word in common F1 is 0, also where both sides are empty.

    Args:
        answer: as predicted.
        golds: right answers; with none, F1 is 0.

    Returns:
        0 to 1.

    Example:
        >>> token_f1("the black cat", ["cat", "black dog barks"])
        0.6666666666666666
    """
    words = Counter(normalise(answer).split())
    return max((_f1(words, Counter(normalise(gold).split())) for gold in golds), default=0.0)


def _f1(words: Counter[str], gold: Counter[str]) -> float:
    common = (words & gold).total()
    if common == 0:
        return 0.0
    precision, recall = common / words.total(), common / gold.total()
    return 2 * precision * recall / (precision + recall)
