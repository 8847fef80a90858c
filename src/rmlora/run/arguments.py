"""The training section in the words of the HF Trainer."""

from __future__ import annotations

from typing import Any

import torch

from rmlora.config import RunConfig
from rmlora.errors import ConfigError
from rmlora.run.folder import RunFolder


def training_arguments(config: RunConfig, folder: RunFolder, metric: str) -> Any:
    """Translate the training section into the Trainer's arguments; writes nothing.

    Args:
        config: of the run, complete.
        folder: of the run, where checkpoints will go.
        metric: decides the best epoch.

    Raises:
        ConfigError: the Trainer refuses one of them.
    """
    from transformers import TrainingArguments

    check_trackers(config.training.report_to)
    t = config.training
    is_text = config.task != "image-classification"
    try:
        return TrainingArguments(
            output_dir=str(folder.checkpoints),
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
            train_sampling_strategy="group_by_length" if t.group_by_length and is_text else "random",
            bf16=t.precision == "bf16",
            fp16=t.precision == "fp16",
            gradient_checkpointing=t.gradient_checkpointing,
            dataloader_num_workers=t.num_workers,
            dataloader_pin_memory=torch.cuda.is_available(),
            remove_unused_columns=False,
            label_names=["labels"],  # PEFT's wrapper hides the model's signature, from which they would be guessed
            eval_strategy="epoch",
            logging_strategy="epoch",
            logging_nan_inf_filter=False,
            save_strategy="epoch" if t.save_every_epoch else "no",
            load_best_model_at_end=t.save == "best",
            metric_for_best_model=f"eval_eval_{metric}" if t.save == "best" else None,
            greater_is_better=True if t.save == "best" else None,
            seed=t.seed,
            report_to=t.report_to or "none",
            disable_tqdm=True,
            use_cpu=not torch.accelerator.is_available(),
        )
    except (ValueError, ImportError, RuntimeError) as error:
        raise ConfigError(f"the Trainer refuses the training settings: {' '.join(str(error).split())}") from error


def check_trackers(names: list[str]) -> None:
    """Refuse trackers the Trainer does not know or that are not installed.

    Raises:
        ConfigError: names what is installed.
    """
    from transformers.integrations import get_available_reporting_integrations

    there = get_available_reporting_integrations()
    for name in names:
        if name not in there:
            raise ConfigError(
                f'training.report_to: "{name}" is no tracker of the Trainer, or is not installed; '
                f"installed: {', '.join(there) or 'none'}"
            )
