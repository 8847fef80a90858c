"""Prompts and completions: as token ids of which only the completion is learned, and how likely a model finds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rmlora.errors import DataError
from rmlora.tasks.data import Examples
from rmlora.tasks.encode import Collate

IGNORED = -100  # the label torch's cross entropy passes over
_CAP = 700.0  # exp of more is no longer a float64


def encode_completions(
    examples: Examples, tokenizer: Any, max_length: int, separator: str = ""
) -> list[dict[str, list[int]]]:
    """Tokenise prompts and completions; the loss is on the completion and on the end token after it.

    Prompt and completion are tokenised apart, so that no token belongs to both. A prompt that is too long loses its
    beginning: what stands next to the completion matters most. The begin token, where the tokenizer writes one, stays.

    Args:
        examples: prompts, and as labels completions, none of them empty.
        tokenizer: of the model, with an end token.
        max_length: tokens of an example, the end token included.
        separator: put between prompt and completion; it counts as prompt.

    Returns:
        One dictionary per example, unpadded: `input_ids`, `attention_mask`, and `labels`, -100 on the prompt.

    Raises:
        DataError: a completion leaves no room for any of its prompt.
    """
    if len(examples) == 0:
        return []
    prompts = tokenize([prompt + separator for prompt in examples.inputs[0]], tokenizer)
    completions = tokenize([str(completion) for completion in examples.labels], tokenizer)
    lead = _lead(tokenizer)
    _check_room(examples, completions, len(lead), max_length)
    rows = []
    for prompt, completion in zip(prompts, completions, strict=True):
        learned = [*completion, tokenizer.eos_token_id]
        given = [*lead, *last(prompt, max_length - len(lead) - len(learned))]
        given = given or [_first(tokenizer)]  # the first token has to be predicted from something
        ids = given + learned
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [IGNORED] * len(given) + learned})
    return rows


def encode_prompts(prompts: Sequence[str], tokenizer: Any, max_length: int, separator: str = "") -> list[list[int]]:
    """Tokenise prompts that a model is to complete, as `encode_completions` does.

    Args:
        prompts: to complete.
        tokenizer: of the model.
        max_length: tokens kept of each, the last ones.
        separator: put after each.
    """
    lead = _lead(tokenizer)
    ids = tokenize([prompt + separator for prompt in prompts], tokenizer)
    return [[*lead, *last(own, max_length - len(lead))] or [_first(tokenizer)] for own in ids]


def pad_completions(tokenizer: Any) -> Collate:
    """Return a collate function that pads a batch on the right; padding is neither seen nor learned."""
    fill = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "labels": IGNORED}

    def collate(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        width = max(len(row["input_ids"]) for row in batch)
        return {
            name: torch.tensor([row[name] + [value] * (width - len(row[name])) for row in batch])
            for name, value in fill.items()
        }

    return collate


def completion_losses(logits: Any, labels: Tensor) -> Tensor:
    """Reduce logits, which would not fit into memory for a whole split, to what the metrics need.

    Args:
        logits: `(n, length, vocabulary)`; of several outputs the first counts.
        labels: `(n, length)`, -100 where nothing is learned.

    Returns:
        `(n, 2)`: of each example the summed negative log-likelihood of its learned tokens, in nats, and their number.

    Example:
        >>> completion_losses(torch.zeros(1, 3, 4), torch.tensor([[-100, 2, 1]]))
        tensor([[2.7726, 2.0000]])
    """
    outputs = logits[0] if isinstance(logits, tuple) else logits
    targets = labels[:, 1:]
    sums = [
        cross_entropy(own[:-1].float(), target, ignore_index=IGNORED, reduction="sum")
        for own, target in zip(outputs, targets, strict=True)
    ]
    return torch.stack([torch.stack(sums), (targets != IGNORED).sum(1).to(sums[0])], dim=1)


def likelihood(losses: Any) -> dict[str, float]:
    """Measure how likely a model finds completions, every token counting the same.

    Args:
        losses: `(n, 2)`, from `completion_losses`.

    Returns:
        `loss`, in nats per token (exact, where the Trainer's mean over batches depends on the batches);
        `log_likelihood`, its negative, of which more is better; `perplexity`, its exponential.

    Example:
        >>> {name: round(value, 3) for name, value in likelihood([[2.0, 3], [4.0, 1]]).items()}
        {'loss': 1.5, 'log_likelihood': -1.5, 'perplexity': 4.482}
    """
    sums = np.asarray(losses, dtype=np.float64).sum(0)
    loss = float(sums[0] / sums[1])
    return {"loss": loss, "log_likelihood": -loss, "perplexity": float(np.exp(min(loss, _CAP)))}


def tokenize(texts: list[str], tokenizer: Any) -> list[list[int]]:
    """Return the token ids of texts, without tokens the tokenizer would put around them."""
    return list(tokenizer(texts, add_special_tokens=False)["input_ids"])


def last(ids: list[int], count: int) -> list[int]:
    """Return the last tokens of a prompt.

    Example:
        >>> last([1, 2, 3], 2), last([1, 2, 3], 0)
        ([2, 3], [])
    """
    return ids[max(len(ids) - count, 0) :]


def _lead(tokenizer: Any) -> list[int]:
    """The begin token, if the tokenizer writes one before a text."""
    begin = tokenizer.bos_token_id
    return [begin] if begin is not None and tokenizer("a")["input_ids"][:1] == [begin] else []


def _first(tokenizer: Any) -> int:
    return int(tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id)


def _check_room(examples: Examples, completions: list[list[int]], lead: int, max_length: int) -> None:
    lengths = [len(ids) + 1 for ids in completions]
    long = [i for i, length in enumerate(lengths) if length + max(lead + 1, 1) > max_length]
    if long:
        begins = str(examples.labels[long[0]])[:40]
        raise DataError(
            f"data.max_length={max_length} leaves nothing of the prompt before {len(long)} of {len(lengths)} "
            f'completions, such as "{begins}..." of {lengths[long[0]]} tokens with its end token; '
            f"set data.max_length above {max(lengths) + lead} or leave them out"
        )
