"""What the paper printed: every number of its tables that a study here can be held against."""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "RM-LoRA, arXiv:2407.12074"


@dataclass(frozen=True)
class Published:
    """One printed number.

    Attributes:
        label: the method, as the studies call it.
        r: directions in training, of AdaLoRA at its end; None without an adapter.
        task: as the studies call it.
        metric: its name; `rank` and `orthogonality_loss` are of dW.
        value: as printed.
        spread: what is printed behind the plus-minus sign; None where nothing is.
    """

    label: str
    r: int | None
    task: str
    metric: str
    value: float
    spread: float | None = None


GLUE_COLUMNS: tuple[tuple[str, str], ...] = (
    ("cola", "matthews"),
    ("stsb", "pearson"),
    ("stsb", "spearman"),
    ("qnli", "accuracy"),
    ("mnli", "accuracy"),
    ("wnli", "accuracy"),
    ("rte", "accuracy"),
    ("mrpc", "accuracy"),
    ("mrpc", "f1"),
    ("qqp", "accuracy"),
    ("qqp", "f1"),
    ("sst2", "accuracy"),
)

# SoRA starts from twice the directions it is to end with: its r is of training. AdaLoRA's is what it ends with.
_GLUE: dict[tuple[str, int | None], str] = {
    ("Full FT", None): ".668 .892 .890 .940 .907 .563 .852 .853 .891 .918 .891 .934",
    ("LoRA", 4): ".680 .912 .912 .939 .901 .718 .856 .892 .922 .912 .883 .934",
    ("AdaLoRA", 4): ".663 .905 .909 .934 .904 .563 .845 .880 .911 .912 .884 .955",
    ("SoRA", 8): ".655 .905 .907 .926 .889 .690 .848 .895 .924 .820 .762 .820",
    ("R-LoRA", 4): ".685 .914 .914 .941 .903 .718 .863 .897 .925 .917 .889 .943",
    ("RM-LoRA", 4): ".689 .915 .915 .942 .906 .732 .866 .892 .922 .913 .884 .943",
    ("LoRA", 8): ".672 .913 .914 .938 .900 .718 .856 .900 .928 .916 .889 .936",
    ("AdaLoRA", 8): ".664 .912 .913 .942 .906 .578 .841 .897 .924 .912 .885 .948",
    ("SoRA", 16): ".665 .907 .910 .930 .895 .690 .841 .897 .927 .819 .761 .826",
    ("R-LoRA", 8): ".694 .914 .914 .943 .904 .732 .863 .907 .933 .917 .890 .940",
    ("RM-LoRA", 8): ".688 .915 .915 .944 .907 .747 .870 .914 .938 .913 .885 .948",
}

# exact match and F1, in points
_SQUAD_DEBERTA: dict[tuple[str, int | None], tuple[float, float]] = {
    ("Full FT", None): (87.83, 93.62),
    ("LoRA", 8): (87.47, 93.33),
    ("SoRA", 16): (82.73, 90.49),
    ("RM-LoRA", 8): (87.87, 93.67),
    ("LoRA", 4): (87.43, 93.35),
    ("AdaLoRA", 4): (86.48, 92.83),
    ("SoRA", 8): (79.64, 88.01),
    ("RM-LoRA", 4): (87.57, 93.51),
}
_SQUAD_GPT2: dict[tuple[str, int | None], tuple[float, float]] = {
    ("Full FT", None): (63.30, 74.41),
    ("LoRA", 16): (61.41, 72.76),
    ("AdaLoRA", 16): (61.70, 72.30),
    ("SoRA", 32): (60.80, 71.80),
    ("RM-LoRA", 16): (62.80, 73.50),
    ("LoRA", 8): (60.34, 71.92),
    ("AdaLoRA", 8): (60.20, 71.40),
    ("SoRA", 16): (59.80, 70.90),
    ("RM-LoRA", 8): (61.00, 72.20),
}

# numerical rank of dW, its orthogonality loss, test accuracy in points
_CIFAR: dict[tuple[str, int], tuple[int, float, float]] = {
    ("LoRA", 32): (29, 585.8, 76.97),
    ("GM-LoRA", 32): (29, 277.9, 77.72),
    ("R-LoRA", 32): (30, 122.1, 77.99),
    ("RM-LoRA", 32): (30, 95.2, 78.05),
    ("LoRA", 64): (55, 410.2, 78.41),
    ("GM-LoRA", 64): (52, 175.0, 79.60),
    ("R-LoRA", 64): (59, 79.9, 79.66),
    ("RM-LoRA", 64): (57, 58.0, 80.07),
    ("LoRA", 80): (64, 342.2, 78.13),
    ("GM-LoRA", 80): (59, 155.0, 79.68),
    ("R-LoRA", 80): (72, 69.0, 79.63),
    ("RM-LoRA", 80): (69, 48.8, 80.20),
}


def _glue() -> tuple[Published, ...]:
    return tuple(
        Published(label, r, task, metric, float(value))
        for (label, r), line in _GLUE.items()
        for (task, metric), value in zip(GLUE_COLUMNS, line.split(), strict=True)
    )


def _squad(rows: dict[tuple[str, int | None], tuple[float, float]]) -> tuple[Published, ...]:
    names = ("exact_match", "f1")
    return tuple(
        Published(label, r, "squad", metric, round(value / 100, 6))
        for (label, r), pair in rows.items()
        for metric, value in zip(names, pair, strict=True)
    )


def _cifar() -> tuple[Published, ...]:
    found: list[Published] = []
    for (label, r), (rank, loss, accuracy) in _CIFAR.items():
        found.append(Published(label, r, "cifar100", "accuracy", round(accuracy / 100, 6)))
        found.append(Published(label, r, "cifar100", "rank", rank))
        found.append(Published(label, r, "cifar100", "orthogonality_loss", loss))
    return tuple(found)


TABLE1, TABLE2, TABLE3, TABLE5 = _glue(), _squad(_SQUAD_DEBERTA), _squad(_SQUAD_GPT2), _cifar()
