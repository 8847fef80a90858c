"""What would stop a cell of a study later and can be known from the study alone, found before anything runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from rmlora.compare.cells import Cell, final_cells, groups_of, selection_cells
from rmlora.compare.contenders import contenders
from rmlora.compare.study import Study
from rmlora.errors import ConfigError, MethodError
from rmlora.methods import METHODS
from rmlora.pairs import Pair
from rmlora.run.variants import refuse_variants
from rmlora.scopes import check
from rmlora.stacking import stack_pairs
from rmlora.tasks.metrics import NAMES
from rmlora.transform import FORWARD_HOOKS, Transform


def foresee_cells(study: Study) -> list[Cell]:
    """Resolve every cell of a study as it will be run, and refuse what no run of it could get past.

    Args:
        study: whose methods and learning rates are known to be sound.

    Returns:
        All cells, the reported ones with the first learning rate of their method.

    Raises:
        ConfigError: two cells are the same run; a setting is of the wrong type, or contradicts another, the task, the
            mode or the method.
        MethodError: a method does not suit adapters of one of the ranks.
    """
    first = {contender.label: contender.rates[0] for contender in contenders(study)}
    cells = [*selection_cells(study), *final_cells(study, {g: first[g.label] for g in groups_of(study)})]
    for cell in cells:
        _check_metric(cell)
        check(cell.config)
    for contender in contenders(study):
        chain = METHODS[contender.method].build(**contender.args)
        if contender.lora.use_dora and chain.hooks() & FORWARD_HOOKS:
            raise ConfigError(
                f"{contender.label} acts inside the forward pass that lora.use_dora changes; leave one of them out"
            )
        refuse_variants(contender.label, chain.adapts, contender.lora)
        if not METHODS[contender.method].trains_base:
            _check_ranks(contender.label, chain, study.ranks)
    return cells


def _check_metric(cell: Cell) -> None:
    """Refuse a metric that no data of this kind of task has; one that depends on the classes is seen with the data."""
    wanted, known = cell.config.training.metric, NAMES[cell.config.task]
    if wanted is not None and wanted not in known:
        raise ConfigError(
            f'task "{cell.group.task}": training.metric is {wanted}, but {cell.config.task} has {", ".join(known)}'
        )


def _check_ranks(label: str, chain: Transform, ranks: Sequence[int]) -> None:
    """Begin the method on a layer of one weight for each rank, as it will begin on the layers of the model."""
    if chain.adapts != "LORA":
        return  # its first rank is chosen to suit it
    for r in ranks:
        try:
            chain.init(stack_pairs([_trial_pair(r)]))
        except MethodError as error:
            raise MethodError(f"{label} at r={r}: {error}") from error


def _trial_pair(r: int) -> Pair:
    # Wide enough for any link: what a model's own layers are too narrow for is known only with the model.
    sides, wide = (nn.Module(), nn.Module()), max(r, 4096)
    for side, shape in zip(sides, ((r, wide), (wide, r)), strict=True):
        side.weight = nn.Parameter(torch.zeros(shape))
    return Pair("every module", nn.Module(), "default", sides)
