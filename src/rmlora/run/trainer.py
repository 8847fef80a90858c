"""The HF Trainer of a run: its examples, its metrics, its callbacks."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PrinterCallback

from rmlora.config import Task
from rmlora.run.answering import make_answer_trainer
from rmlora.run.folder import RunFolder
from rmlora.run.ordered import OrderedTrainer
from rmlora.run.plan import Plan
from rmlora.run.predictions import KeepPredictions
from rmlora.tasks.calibration import measure_calibration
from rmlora.tasks.completions import completion_losses, pad_completions
from rmlora.tasks.encode import Collate, collate_images, head_of, pad_texts
from rmlora.tasks.metrics import measure
from rmlora.tasks.squad_windows import pad_windows
from rmlora.two_parts import TwoPartBatches, find_levels


def make_trainer(plan: Plan, callbacks: Sequence[Any]) -> Any:
    """Build the Trainer, which makes its folder of checkpoints.

    Args:
        plan: of the run.
        callbacks: what records and shows; run in this order.
    """
    trainer = _build(plan, callbacks)
    trainer.batches = two_parts(plan)
    # Models take any keyword but average their loss over the batch at hand. Left to itself the Trainer believes
    # they divide by the items of the whole step, and their gradient grows with accumulation and with processes.
    # Language models do divide by the tokens of the whole step, and the Trainer knows.
    if plan.config.task != "causal-lm":
        trainer.model_accepts_loss_kwargs = False
    trainer.remove_callback(PrinterCallback)
    return trainer


def two_parts(plan: Plan) -> TwoPartBatches | None:
    """Return the batches of a method that learns from two parts of the training set; None for any other."""
    transform = plan.method.build(**plan.config.method_args)
    if find_levels(transform) is None:
        return None
    training, arguments = plan.config.training, plan.arguments
    return TwoPartBatches(
        len(plan.encoded["train"]),
        training.batch_size,
        transform,
        batches_per_step=training.gradient_accumulation_steps * arguments.world_size,
        seed=training.seed,
    )


def _build(plan: Plan, callbacks: Sequence[Any]) -> Any:
    if plan.config.task == "question-answering":
        return make_answer_trainer(plan, callbacks)
    train, held_out = plan.encoded["train"], plan.encoded["eval"]
    count = plan.config.training.train_eval_examples
    others = {name: plan.encoded[name] for name in plan.data.others}
    parts = {"train": head_of(train, count, plan.config.training.seed)} if count else {}
    task = plan.config.task
    predictions = KeepPredictions(RunFolder(Path(str(plan.config.output))), task)
    return OrderedTrainer(
        model=plan.model,
        args=plan.arguments,
        train_dataset=train,
        eval_dataset={**parts, **others, "eval": held_out},
        data_collator=collate(task, plan.processor),
        compute_metrics=predictions.watch(lambda output: measure_outputs(output, task)),
        callbacks=[predictions, *callbacks],
        preprocess_logits_for_metrics=completion_losses if task == "causal-lm" else None,
    )


def measure_outputs(output: Any, task: Task) -> dict[str, float]:
    """Compute the metrics of a task, and for classifiers calibration error (ece, 15 bins) and Brier score (brier).

    Args:
        output: the Trainer's, with `predictions` and `label_ids`.
        task: kind of task.
    """
    found = measure(output.predictions, output.label_ids, task)
    if task.endswith("-classification"):
        logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
        found |= measure_calibration(logits, output.label_ids)
    return found


def collate(task: Task, processor: Any) -> Collate:
    """Return what makes a padded batch of encoded examples."""
    if task == "question-answering":
        return pad_windows(processor)
    if task == "causal-lm":
        return pad_completions(processor)
    return collate_images(processor) if task == "image-classification" else pad_texts(processor)


def quieten() -> Callable[[], None]:
    """Silence what libraries say about themselves; errors stay. Return what undoes it."""
    from transformers.utils import logging as hf

    level, bars = hf.get_verbosity(), hf.is_progress_bar_enabled()
    hf.set_verbosity_error()
    hf.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    caught = warnings.catch_warnings()
    caught.__enter__()
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module=r"(peft|transformers|torch|accelerate)\..*")

    def restore() -> None:
        caught.__exit__(None, None, None)
        hf.set_verbosity(level)
        if bars:
            hf.enable_progress_bar()

    return restore
