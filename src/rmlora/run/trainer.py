"""The HF Trainer of a run: its arguments, its examples, its metrics, its callbacks."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainingArguments

from rmlora.config import RunConfig
from rmlora.errors import ConfigError
from rmlora.run.plan import Plan
from rmlora.tasks.data import Examples
from rmlora.tasks.encode import ImageExamples, collate_images, encode_texts, head_of, pad_texts
from rmlora.tasks.metrics import measure


def make_trainer(plan: Plan, checkpoints: Path, callbacks: Sequence[Any]) -> Any:
    """Build the Trainer.

    Args:
        plan: of the run.
        checkpoints: folder of the Trainer's own files.
        callbacks: what records and shows; run in this order.

    Raises:
        ConfigError: the Trainer refuses a setting.
    """
    train, held_out = encode(plan, plan.data.train), encode(plan, plan.data.eval)
    count = plan.config.training.train_eval_examples
    parts = {"train": head_of(train, count, plan.config.training.seed)} if count else {}
    task = plan.config.task
    is_image = task == "image-classification"
    trainer = Trainer(
        model=plan.model,
        args=training_arguments(plan.config, checkpoints, plan.metric, is_image),
        train_dataset=train,
        eval_dataset={**parts, "eval": held_out},
        data_collator=collate_images(plan.processor) if is_image else pad_texts(plan.processor),
        compute_metrics=lambda output: measure(output.predictions, output.label_ids, task),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def encode(plan: Plan, examples: Examples) -> Any:
    """Turn examples into what the model takes."""
    if plan.config.task != "image-classification":
        return encode_texts(examples, plan.processor, plan.config.data.max_length)
    mode = "L" if getattr(plan.model.config, "num_channels", 3) == 1 else "RGB"
    return ImageExamples(examples, mode)


def training_arguments(config: RunConfig, checkpoints: Path, metric: str, is_image: bool) -> Any:
    """Translate the training section into the Trainer's arguments.

    Raises:
        ConfigError: the Trainer refuses one of them.
    """
    t = config.training
    on_gpu = torch.cuda.is_available()
    try:
        return TrainingArguments(
            output_dir=str(checkpoints),
            num_train_epochs=t.epochs,
            learning_rate=t.lr,
            per_device_train_batch_size=t.batch_size,
            per_device_eval_batch_size=t.eval_batch_size,
            gradient_accumulation_steps=t.gradient_accumulation_steps,
            optim=t.optimizer,
            weight_decay=t.weight_decay,
            max_grad_norm=t.max_grad_norm,
            lr_scheduler_type=t.lr_scheduler,
            warmup_steps=t.warmup_steps if t.warmup_steps < 1 else int(t.warmup_steps),
            train_sampling_strategy="group_by_length" if t.group_by_length and not is_image else "random",
            bf16=t.precision == "bf16",
            fp16=t.precision == "fp16",
            gradient_checkpointing=t.gradient_checkpointing,
            dataloader_num_workers=t.num_workers,
            dataloader_pin_memory=on_gpu,
            remove_unused_columns=False,
            label_names=["labels"],  # PEFT's wrapper hides the model's signature, from which they would be guessed
            eval_strategy="epoch",
            logging_strategy="epoch",
            logging_nan_inf_filter=False,
            save_strategy="epoch" if t.save_every_epoch else "no",
            save_total_limit=t.keep_checkpoints,
            load_best_model_at_end=t.save == "best",
            metric_for_best_model=f"eval_eval_{metric}" if t.save == "best" else None,
            greater_is_better=True if t.save == "best" else None,
            seed=t.seed,
            report_to=t.report_to or "none",
            disable_tqdm=True,
        )
    except (ValueError, ImportError, RuntimeError) as error:
        raise ConfigError(f"the Trainer refuses the training settings: {' '.join(str(error).split())}") from error


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
