"""What a run records of each epoch: losses, metrics, the gap between them, and what became of the adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from rmlora.analysis.gram import penalty
from rmlora.analysis.orthogonality import orthogonality_excess
from rmlora.analysis.spectra import default_tolerance, effective_rank, numerical_rank, singular_values, stable_rank
from rmlora.errors import DivergedError
from rmlora.pairs import Factors, Stack
from rmlora.run.folder import RunFolder
from rmlora.run.masked_updates import MaskedUpdates
from rmlora.stacking import stack_pairs

Row = dict[str, Any]

_MEANS = (
    "effective_rank",
    "stable_rank",
    "rank",
    "orthogonality_loss",
    "orthogonality_floor",
    "orthogonality_excess",
)

# The Trainer names a metric of the part "train" eval_train_<metric>, and likewise for "eval".
PREFIXES = {"train": "eval_train_", "mismatched": "eval_mismatched_", "eval": "eval_eval_"}


class SkipEvaluations(TrainerCallback):  # type: ignore[misc]
    """Evaluate after every few epochs only, and after the last.

    Args:
        every: so many epochs.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take back what the Trainer has decided."""
        epoch = round(state.epoch)
        if epoch % self.every and epoch < round(args.num_train_epochs):
            control.should_evaluate = False


class RecordEpochs(TrainerCallback):  # type: ignore[misc]
    """Append one row to metrics.jsonl after each epoch's evaluation.

    A row holds nothing that differs between two runs of the same thing, such as times, so that a resumed run leaves
    the same file as one that was never interrupted.
    """

    def __init__(self, folder: RunFolder, metric: str, handle: Any = None) -> None:
        self.folder = folder
        self.metric = metric
        self.handle = handle
        self.updates = MaskedUpdates(handle) if handle is not None else None
        self.pending: Row = {}

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget the movement of an epoch that was not evaluated: a row is about its own epoch."""
        if self.updates is not None:
            self.updates.take()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember the factors before the optimizer moves them."""
        if self.updates is not None:
            self.updates.begin_step()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure what it moved."""
        if self.updates is not None:
            self.updates.end_step()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Row, **kwargs: Any) -> None:
        """Collect the metrics of one part; write the row once the held-out part is there."""
        for part, prefix in PREFIXES.items():
            for name, value in metrics.items():
                short = name.removeprefix(prefix)
                if name.startswith(prefix) and "per_second" not in name and short != "runtime":
                    self.pending[f"{part}_{short}"] = value
        if "eval_loss" not in self.pending:
            return
        row = make_row(state, self.pending, self.metric)
        self.pending = {}
        refuse_nan(row)
        row |= measure_adapter(self.handle)
        if self.updates is not None:
            row["masked_share"] = self.updates.take()
        if state.is_world_process_zero:
            self.folder.write_rows([*self.folder.rows(), row])


def make_row(state: Any, found: Row, metric: str) -> Row:
    """Put one epoch into a row.

    Args:
        state: the Trainer's.
        found: `train_loss`, `eval_loss` and metrics of both parts; the former may be absent.
        metric: the one whose gap is taken.

    Returns:
        epoch, step, running_loss (mean over the epoch's batches, dropout on), the losses and metrics found, `gap`
        (train minus eval metric, positive when overfitting) and `loss_gap` (eval minus train loss).
    """
    logged = [entry["loss"] for entry in state.log_history if "loss" in entry]
    row: Row = {
        "epoch": round(state.epoch),
        "step": state.global_step,
        "running_loss": logged[-1] if logged else None,
    }
    row |= {name: found[name] for name in sorted(found, key=lambda n: (n.split("_")[0] != "train", n))}
    has_train = "train_loss" in found
    row["gap"] = found[f"train_{metric}"] - found[f"eval_{metric}"] if has_train else None
    row["loss_gap"] = found["eval_loss"] - found["train_loss"] if has_train else None
    return row


@torch.no_grad()
def measure_adapter(handle: Any) -> Row:
    """Measure what the adapter has become, over all its pairs.

    dW is that of the folded factors, as it would be saved now: with SoRA's gates and AdaLoRA's values in it.

    Args:
        handle: what `attach` returned; not changed. None, as in full fine-tuning, gives an empty row.

    Returns:
        penalty (of the live factors, which are what it acts on; summed over modules, unweighted), and means over
        modules of what dW = s B A has become: effective_rank, stable_rank, rank (numerical, of singular values above
        rank_tolerance times the largest; the tolerance is the widest of the modules'), orthogonality_loss
        `||dW dW^T - I||_F^2`, the orthogonality_floor no dW of r directions gets below, and orthogonality_excess, the
        loss above it.
    """
    if handle is None:
        return {}
    folded = handle.fold()
    sums: dict[str, float] = dict.fromkeys(("penalty", *_MEANS), 0.0)
    tolerance = 0.0
    for stack in stack_pairs(handle.pairs, lambda pair: folded[pair.name][0].shape):
        own = [folded[name] for name in stack.names]
        found = _measure_stack(stack, Factors(torch.stack([A for A, _ in own]), torch.stack([B for _, B in own])))
        tolerance = max(tolerance, found.pop("rank_tolerance"))
        for name, value in found.items():
            sums[name] += value
    means = {name: sums[name] / len(handle.pairs) for name in _MEANS}
    return {"penalty": sums["penalty"], **means, "rank_tolerance": tolerance}


def _measure_stack(stack: Stack, folded: Factors) -> dict[str, float]:
    """Sums over the pairs of one shape, in float64; and the tolerance of their rank."""
    factors = Factors(folded.A.double(), folded.B.double())
    d_in, d_out = factors.A.shape[2], factors.B.shape[1]
    sigma = singular_values(factors, stack.scale)
    tolerance = default_tolerance(d_out, d_in, folded.A.dtype)
    excess = float(orthogonality_excess(sigma).sum())
    floor = float(len(stack) * (d_out - sigma.shape[-1]))
    return {
        "penalty": float(penalty(Factors(stack.A.double(), stack.B.double())).sum()),
        "effective_rank": float(effective_rank(sigma).sum()),
        "stable_rank": float(stable_rank(sigma).sum()),
        "rank": float(numerical_rank(sigma, tolerance).sum()),
        "orthogonality_loss": excess + floor,
        "orthogonality_floor": floor,
        "orthogonality_excess": excess,
        "rank_tolerance": tolerance,
    }


def refuse_nan(row: Row) -> None:
    """Stop a run whose loss is no longer a number.

    Raises:
        DivergedError: names the epoch and what usually helps.
    """
    broken = [n for n in ("running_loss", "train_loss", "eval_loss") if not math.isfinite(row.get(n) or 0.0)]
    if broken:
        raise DivergedError(
            f"{broken[0]} is {row[broken[0]]} after epoch {row['epoch']}: training diverged; lower training.lr "
            "(or use precision=fp32), and start again with --overwrite"
        )


def best_row(rows: Sequence[Row], metric: str) -> Row:
    """Return the first of the rows with the highest held-out metric.

    Example:
        >>> best_row([{"eval_f1": 0.5, "epoch": 1}, {"eval_f1": 0.7, "epoch": 2}], "f1")["epoch"]
        2
    """
    return max(rows, key=lambda row: row[f"eval_{metric}"])
