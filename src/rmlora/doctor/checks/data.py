"""Will the metric be there, and do padding and end tokens mean what they should?"""

from __future__ import annotations

import math

from torch import nn

from rmlora.doctor.finding import Finding
from rmlora.doctor.outputs import apart
from rmlora.doctor.subject import Subject
from rmlora.tasks.completions import IGNORED

_INVARIANT = 1e-3


def metric_exists(subject: Subject) -> Finding:
    """Tell whether evaluation gives a loss and the metric that decides the best epoch."""
    metric, found = subject.plan.metric, subject.evaluated
    if isinstance(found, str):
        return Finding("metric", "problem", f"evaluation stopped with {found}", "look at the held-out examples")
    wanted = {"loss": found.get("eval_eval_loss"), metric: found.get(f"eval_eval_{metric}")}
    absent = [name for name, value in wanted.items() if value is None]
    if absent:
        return Finding(
            "metric",
            "problem",
            f"evaluation gives no {' and no '.join(absent)}; it gives {', '.join(found) or 'nothing'}",
            'label_names=["labels"] must reach the trainer: PEFT hides the signature from which it guesses them',
        )
    numbers = {name: float(value) for name, value in wanted.items() if value is not None}
    broken = [name for name, value in numbers.items() if not math.isfinite(value)]
    told = f"{', '.join(f'{n} {v:.4f}' for n, v in numbers.items())} on {subject.num_evaluated} held-out examples"
    if broken:
        return Finding(
            "metric", "problem", f"{broken[0]} is not a number: {told}", "lower training.lr; look at the data"
        )
    return Finding("metric", "ok", told, values=numbers)


def tokens_differ(subject: Subject) -> Finding:
    """Tell whether there is a token to pad with, one to end with, and whether the end is learnt."""
    task, tokenizer = subject.plan.config.task, subject.plan.processor
    if task == "image-classification":
        return Finding("tokens", "skipped", "images have none")
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    if pad is None:
        return Finding("tokens", "problem", "the tokenizer has no padding token", "tokenizer.pad_token = ...")
    if subject.plan.model.config.pad_token_id != pad:
        seen = f"the tokenizer pads with {pad}, the model's configuration says {subject.plan.model.config.pad_token_id}"
        return Finding("tokens", "warning", seen, "model.config.pad_token_id = tokenizer.pad_token_id")
    if task != "causal-lm":
        return Finding("tokens", "ok", f"padding {pad} in tokenizer and model")
    unlearnt = _without_end(subject)
    if unlearnt:
        seen = f"{unlearnt} training examples do not end in a learnt end token ({eos}): the model would never stop"
        return Finding("tokens", "problem", seen, "labels must hold the end token, and not be masked by the padding id")
    if pad == eos:
        return Finding(
            "tokens",
            "warning",
            f"padding and end are one token ({pad}); rmlora learns the end all the same, but trainers that leave "
            "padding out by its id would not",
            "give the tokenizer a padding token of its own, one the model knows",
        )
    return Finding("tokens", "ok", f"padding {pad} and end {eos} differ, and the end is learnt")


def _without_end(subject: Subject) -> int:
    """How many of the first training examples, as the trainer's collate gives them, do not learn to end."""
    from rmlora.run.trainer import collate

    train, tokenizer = subject.plan.encoded["train"], subject.plan.processor
    rows = [train[i] for i in range(min(64, len(train)))]
    labels = collate("causal-lm", tokenizer)(rows)["labels"]
    learnt = [row[row != IGNORED] for row in labels]
    return sum(len(row) == 0 or int(row[-1]) != tokenizer.eos_token_id for row in learnt)


def lengths_fit(subject: Subject) -> Finding:
    """Tell whether the longest example has a position for every token, in whatever batch it may come."""
    plan = subject.plan
    if plan.config.task == "image-classification":
        return Finding("lengths", "skipped", "images have none")
    longest = max(len(example["input_ids"]) for part in plan.encoded.values() for example in part)
    room = _positions(plan.model)
    if room is None:
        return Finding("lengths", "ok", f"longest example {longest} tokens; the model numbers no positions")
    seen = f"longest example {longest} tokens, the model has {room} positions"
    if longest > room:
        return Finding(
            "lengths", "problem", seen, f"data.max_length={room}, or less", {"longest": longest, "room": room}
        )
    return Finding("lengths", "ok", seen, values={"longest": longest, "room": room})


def _positions(model: nn.Module) -> int | None:
    """Rows of the model's table of positions that stand for one; None if it has no such table."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.split(".")[-1] in (
            "position_embeddings",
            "wpe",
            "embed_positions",
        ):
            # RoBERTa counts positions from behind its padding's.
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


def padding_is_inert(subject: Subject) -> Finding:
    """Tell whether an example gets the same outputs alone and padded beside a longer one."""
    gap = subject.padding_gap
    if gap is None:
        return Finding("padding", "skipped", "nothing is padded, or all examples have one length")
    seen = f"an example alone and beside a longer one: {apart(gap)}"
    if gap > _INVARIANT:
        remedy = "attention_mask or pad_token_id does not fit the model: results would depend on the batch"
        return Finding("padding", "problem", seen, remedy, {"gap": gap})
    return Finding("padding", "ok", seen, values={"gap": gap})
