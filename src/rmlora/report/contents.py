"""What a report says, and in which order: from a study's files to a document."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from shlex import quote

from rmlora.compare.arms import EPOCHS, Arm, Row, Setting, choose_baseline, sort_into_arms
from rmlora.compare.effect import describe_effect, points_per_unit
from rmlora.compare.inference_budget import InferenceBudget, inference_budgets
from rmlora.compare.verdicts import SIGNIFICANT, Comparison, compare_methods
from rmlora.report.calibration import calibration_table
from rmlora.report.document import Block, Commands, Document, Heading, Paragraph, Points, Table
from rmlora.report.drawing import style_of
from rmlora.report.figures import figures_of
from rmlora.report.heat_maps import heat_maps
from rmlora.report.number_format import NONE, probability
from rmlora.report.results import budget_table, parameters_table, results_table, tests_table, update_table
from rmlora.report.study_files import StudyFiles
from rmlora.report.surroundings import environment_table


@dataclass(frozen=True)
class Compiled:
    """A study, sorted and compared.

    Attributes:
        files: its folder.
        arms: in the study's order.
        compared: every comparison.
        baseline: label.
        budgets: what is kept at inference, of every setting that recorded it.
    """

    files: StudyFiles
    arms: list[Arm]
    compared: list[Comparison]
    baseline: str
    budgets: list[InferenceBudget]

    def settings(self) -> list[Setting]:
        """The settings, in the study's order."""
        return list(dict.fromkeys(arm.setting for arm in self.arms))


def compile_document(files: StudyFiles, baseline: str | None = None) -> Document:
    """Write the report of a study as a document.

    Args:
        files: of the study.
        baseline: label or method; None is plain LoRA, or the first method where there is none.

    Raises:
        ConfigError: a baseline is named that the study does not have.
    """
    final = [row for row in files.rows if row.get("kind", "final") == "final"]
    if baseline is None and not any(row["method"] == "lora" for row in final):
        baseline = str(final[0].get("label") or final[0]["method"])
    chosen = choose_baseline(final, baseline)
    compared = compare_methods(final, files.predictions, baseline=chosen)
    budgets = [budget for budget in inference_budgets(final) if any(budget.counts.values())]
    study = Compiled(files, sort_into_arms(final), compared, chosen, budgets)
    blocks: list[Block] = [*_findings(study)]
    for number, setting in enumerate(study.settings(), start=1):
        blocks += _setting(study, setting, number)
    blocks += [*heat_maps(study.arms), *_ending(study)]
    # The opening names what is damaged, all of which is known only now.
    return Document(files.name, [*_opening(study), *blocks])


def _opening(study: Compiled) -> Iterator[Block]:
    runs = sum(row.get("kind", "final") == "final" for row in study.files.rows)
    methods = len({arm.label for arm in study.arms})
    seeds = sorted({seed for arm in study.arms for seed in arm.runs})
    yield Paragraph(
        f"{_plural(runs, 'run')}: {_plural(methods, 'method')}, {_plural(len(study.settings()), 'setting')}, "
        f"{_plural(len(seeds), 'seed')} ({', '.join(map(str, seeds))}). Everything is compared with {study.baseline}."
    )
    if study.files.problems:
        yield Paragraph("Not everything in this study could be read:", strong=True)
        yield Points(tuple(study.files.problems))


def _findings(study: Compiled) -> Iterator[Block]:
    yield Heading("What it shows")
    is_one = len(study.settings()) == 1
    said = [("" if is_one else f"{one.setting}, ") + _sentence(one) for one in study.compared if one.epoch == "last"]
    if not said:
        yield Paragraph(f"There is nothing beside {study.baseline} to compare it with.")
        return
    yield Points(tuple(said))
    yield Paragraph(
        "Better or worse is said of the last epoch where the difference should hold on other seeds (paired t test) and "
        "on other examples (bootstrap over seeds and examples), at 5% over all comparisons together (Holm). The best "
        "epoch is picked on the very examples it is reported on, so it flatters every method."
    )
    yield from _same_budget(study)


def _same_budget(study: Compiled) -> Iterator[Block]:
    """Whether it was a comparison at one inference budget: a check, whose numbers stand with each setting."""
    differing = list(dict.fromkeys(label for budget in study.budgets for label in budget.differing))
    where = "in every setting " if len(study.budgets) > 1 else ""
    if differing:
        yield Paragraph(
            "Not all methods keep the same number of parameters at inference. Another number than most is kept by "
            f"{', '.join(differing)}; how many is said with the parameters of each setting."
        )
    elif study.budgets:
        yield Paragraph(f"The inference budget is the same {where}for all methods: they keep equally many parameters.")


def _sentence(one: Comparison) -> str:
    """One comparison in words."""
    effect = describe_effect(one.over_seeds, one.metric, one.num_examples, _scale_of(one))
    found = "no evidence of a difference from" if one.verdict == "no evidence" else f"{one.verdict} than"
    adjusted = f", p {probability(one.p_adjusted)} after Holm" if one.p_adjusted == one.p_adjusted else ""
    if one.p_value <= SIGNIFICANT < one.p_adjusted:
        adjusted += f" and {probability(one.p_value)} before: more seeds could tell"
    return f"{one.label}: {found} {one.baseline} ({one.metric} {effect}{adjusted})."


def _scale_of(one: Comparison) -> float:
    return points_per_unit(one.metric, [one.summary.mean, one.baseline_summary.mean])


def _setting(study: Compiled, setting: Setting, number: int) -> Iterator[Block]:
    arms = [arm for arm in study.arms if arm.setting == setting]
    arms.sort(key=lambda arm: arm.label != study.baseline)
    own = [one for one in study.compared if one.setting == setting]
    scale = points_per_unit(arms[0].metric, [value for arm in arms for value in arm.values("last").values()])
    yield Heading(str(setting))
    examples = next((one.num_examples for one in own if one.num_examples), None)
    if examples:
        yield Paragraph(f"{examples} held-out examples: one example is {100 / examples:.2f} points.")
    index = {(one.label, one.setting, one.epoch): one for one in own}
    yield results_table(arms, index, f"results-{number}", scale)
    if own:
        yield tests_table(own, f"tests-{number}", scale)
    labels = list(dict.fromkeys(arm.label for arm in study.arms))
    yield from figures_of(study.files, arms, own, style_of(labels, study.baseline), number, scale)
    measured = update_table(arms, f"update-{number}", scale)
    if measured is not None:
        yield measured
    calibrated = calibration_table(arms, f"calibration-{number}", scale)
    if calibrated is not None:
        yield calibrated
    yield parameters_table(arms, f"parameters-{number}")
    yield from (Paragraph(f"Inference budget: {budget}") for budget in study.budgets if budget.setting == setting)


def _ending(study: Compiled) -> Iterator[Block]:
    budget = budget_table(study.files.rows, "learning-rates")
    if budget is not None:
        yield Heading("Learning rates")
        yield budget
    yield Heading("Environment")
    yield environment_table(study.files)
    yield Heading("Every run, and how to run it again")
    yield _runs_table(study)
    yield _commands(study)
    yield Paragraph(
        f"Made by rmlora {version('rmlora')} (Python {platform.python_version()}) from the files of the study alone: "
        f"rmlora report {quote(str(study.files.path))}"
    )


def _runs_table(study: Compiled) -> Table:
    rows = []
    for arm in study.arms:
        scale = points_per_unit(arm.metric, list(arm.values("last").values()))
        for seed, row in sorted(arm.runs.items()):
            values = [arm.values(epoch).get(seed) for epoch in EPOCHS]
            shown = [NONE if value is None else f"{scale * value:.2f}" for value in values]
            r = NONE if arm.setting.r is None else str(arm.setting.r)
            seconds = row.get("seconds")
            lr = row.get("lr")
            told = (r, str(seed), NONE if lr is None else f"{lr:g}", *shown)
            taken = NONE if seconds is None else f"{seconds:.0f}"
            rows.append((f"{arm.label}, {arm.setting.task}", *told, taken, str(row.get("cell", NONE))))
    columns = ("run", "r", "seed", "lr", "last", "best", "seconds", "cell")
    return Table("runs", "Every run of the table.", columns, tuple(rows), folded=True, in_paper=False)


def _commands(study: Compiled) -> Commands:
    path = study.files.path
    lines = [("the whole study", f"rmlora compare {quote(str(path / 'study.yaml'))}")]
    seen = set()
    for arm in study.arms:
        for seed, row in sorted(arm.runs.items()):
            cell = str(row.get("cell", NONE))
            if cell not in seen:
                seen.add(cell)
                lines.append((f"{arm.label}, {arm.setting}, seed {seed}", _command(study.files, row, cell)))
    return Commands(tuple(lines))


def _command(files: StudyFiles, row: Row, cell: str) -> str:
    if row.get("command"):
        command = row["command"]
        return command if isinstance(command, str) else " ".join(quote(str(word)) for word in _words(command))
    folder = files.cell(row)
    if folder is None or not (folder / "config.yaml").is_file():
        return f"rmlora compare {quote(str(files.path / 'study.yaml'))}"
    output = quote(f"output=again/{cell}")
    return f"rmlora train {quote(str(folder / 'config.yaml'))} {output}"


def _words(command: object) -> Sequence[object]:
    return command if isinstance(command, list | tuple) else [command]


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
