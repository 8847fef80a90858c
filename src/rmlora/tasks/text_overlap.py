"""How much of the reference texts a generated text has: ROUGE-L and BLEU, by the libraries that are cited for them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

from rmlora.errors import ConfigError

_PACKAGES = {"rouge_l": ("rouge_score", "rouge-score"), "bleu": ("sacrebleu", "sacrebleu")}


def check_overlap_metrics(names: Sequence[str]) -> None:
    """Refuse metrics whose library is not installed.

    Raises:
        ConfigError: says what to install.
    """
    for name in names:
        module, package = _PACKAGES[name]
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f'generation.metrics: "{name}" needs {package}: pip install "rmlora[generation]"')


def overlap(names: Sequence[str], generated: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compare generated texts with their references.

    Args:
        names: of the metrics: rouge_l, bleu.
        generated: texts.
        references: of each text, at least one.

    Returns:
        Metrics by name, 0 to 1.

    Raises:
        ConfigError: a library is missing.
    """
    check_overlap_metrics(names)
    return {name: METRICS[name](generated, references) for name in names}


def rouge_l(generated: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Average over texts the best F1 of the longest common subsequence with a reference; words are not stemmed."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    best = [
        max(scorer.score(reference, text)["rougeL"].fmeasure for reference in own)
        for text, own in zip(generated, references, strict=True)
    ]
    return float(sum(best) / len(best))


def bleu(generated: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Compute corpus BLEU as sacrebleu does by default (13a, exponential smoothing), over 100."""
    from sacrebleu import corpus_bleu

    most = max(len(own) for own in references)
    streams: Any = [[own[i] if i < len(own) else None for own in references] for i in range(most)]
    return float(corpus_bleu(list(generated), streams).score) / 100


METRICS: dict[str, Callable[[Sequence[str], Sequence[Sequence[str]]], float]] = {"rouge_l": rouge_l, "bleu": bleu}
