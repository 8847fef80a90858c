"""The figures of one setting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rmlora.analysis.adapters import inspect_adapter
from rmlora.analysis.report import AdapterReport
from rmlora.compare.arms import Arm
from rmlora.compare.verdicts import Comparison
from rmlora.errors import AdapterError
from rmlora.report.calibration import reliability_figure
from rmlora.report.curves import curve, draw_curves, is_number
from rmlora.report.document import Figure
from rmlora.report.panels import Dot, Styles, draw_differences, draw_scatter, draw_spectra
from rmlora.report.study_files import StudyFiles


def figures_of(
    files: StudyFiles, arms: Sequence[Arm], compared: Sequence[Comparison], styles: Styles, number: int, scale: float
) -> Iterator[Figure]:
    """Draw a setting: differences, curves, reliability, the scatter, spectra; what was not measured is left out.

    Args:
        files: of the study.
        arms: of the setting.
        compared: of the setting.
        styles: by label.
        number: of the setting, in the figures' names.
        scale: what makes points of the metric.
    """
    last = [one for one in compared if one.epoch == "last" and one.seeds]
    if last:
        svg = draw_differences(f"differences-{number}", last, styles, scale)
        yield Figure(
            f"differences-{number}",
            f"Paired differences to {last[0].baseline}, last epoch: thick, 95% t interval over seeds; thin, bootstrap "
            "over seeds and examples.",
            svg,
        )
    yield from _curves(files, arms, styles, number, scale)
    reliability = reliability_figure(arms, styles, f"reliability-{number}")
    if reliability is not None:
        yield reliability
    dots = [dot for arm in arms for dot in _dots(arm, scale)]
    if dots:
        svg = draw_scatter(f"scatter-{number}", dots, styles, arms[0].metric)
        caption = "Effective rank against orthogonality loss of dW at the last epoch; a dot is a run, its size the "
        yield Figure(f"scatter-{number}", f"{caption}{arms[0].metric}.", svg)
    spectra = {arm.label: found for arm in arms if (found := _spectrum(files, arm))}
    if spectra:
        svg = draw_spectra(f"spectra-{number}", spectra, styles)
        caption = "Spectrum of dW, mean over modules, first seed: a flat line uses all its directions."
        yield Figure(f"spectra-{number}", caption, svg)


def _curves(files: StudyFiles, arms: Sequence[Arm], styles: Styles, number: int, scale: float) -> Iterator[Figure]:
    metric = arms[0].metric
    runs = {arm.label: [files.epochs(row) for row in arm.runs.values()] for arm in arms}
    wanted: tuple[tuple[str, str, str, float, bool], ...] = (
        ("eval", f"eval_{metric}", f"held-out {metric}", scale, False),
        ("train", f"train_{metric}", f"train {metric}", scale, False),
        ("gap", "gap", f"gap: train - held-out {metric}", scale, False),
        ("loss", "eval_loss", "held-out loss", 1.0, False),
        ("rank", "effective_rank", "effective rank of dW", 1.0, False),
        ("orthogonality", "orthogonality_loss", "orthogonality loss of dW", 1.0, True),
        ("penalty", "penalty", "penalty, unweighted", 1.0, True),
        ("masked", "masked_share", "masked share of all movement, %", 100.0, False),
    )
    for name, key, title, by, is_log in wanted:
        curves = {label: curve(rows, key) for label, rows in runs.items()}
        if any(curves.values()):
            full = f"{name}-{number}"
            caption = f"{title[:1].upper()}{title[1:]} by epoch: mean and standard deviation over seeds."
            yield Figure(full, caption, draw_curves(full, curves, styles, title, by, is_log))


def _dots(arm: Arm, scale: float) -> Iterator[Dot]:
    for row in arm.runs.values():
        last: dict[str, Any] = row.get("last") or {}
        found = [last.get(key) for key in ("effective_rank", "orthogonality_loss", f"eval_{arm.metric}")]
        if all(map(is_number, found)):
            rank, loss, value = (float(number) for number in found if is_number(number))
            yield Dot(arm.label, rank, loss, scale * value)


def _spectrum(files: StudyFiles, arm: Arm) -> list[float]:
    """The mean spectrum of the first seed's adapter; empty where it was not kept."""
    folder = files.cell(arm.runs[min(arm.runs)])
    if folder is None or not (folder / "adapter_model.safetensors").is_file():
        return []
    try:
        return mean_spectrum(inspect_adapter(folder))
    except AdapterError as error:
        files.note(f"{error} Its spectrum is left out.")
        return []


def mean_spectrum(report: AdapterReport) -> list[float]:
    """Average the modules' singular values, each relative to its module's largest.

    Modules of fewer directions count as 0 beyond them; a module whose dW is 0 does not count.
    """
    spectra = [row.singular_values for row in report.modules if row.singular_values and row.singular_values[0] > 0]
    longest = max(map(len, spectra), default=0)
    padded = [[value / values[0] for value in values] + [0.0] * (longest - len(values)) for values in spectra]
    return [sum(column) / len(padded) for column in zip(*padded, strict=True)]
