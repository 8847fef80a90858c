"""Tiny models with a method that drops features, to make ensembles of."""

from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    LlamaConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import rmlora
from rmlora.transform import Transform
from tests.tiny import ENDS, LABELS, SMALL, TEXT, TINY, Tiny, text_batch

HEADS = {"num_attention_heads": 2}


def roberta(**changes: Any) -> nn.Module:
    """RoBERTa for sequences."""
    return RobertaForSequenceClassification(RobertaConfig(**(SMALL | TEXT | HEADS | {"num_labels": LABELS} | changes)))


def bert_for_questions(**changes: Any) -> nn.Module:
    """BERT that marks an answer's first and last token."""
    return BertForQuestionAnswering(BertConfig(**(SMALL | TEXT | HEADS | changes)))


def llama_for_sequences(**changes: Any) -> nn.Module:
    """Llama whose head picks the last token of every row by the ids it was given."""
    return LlamaForSequenceClassification(
        LlamaConfig(**(SMALL | TEXT | ENDS | HEADS | {"num_labels": LABELS} | changes))
    )


_PROJECTIONS = {"target_modules": ["query", "value"]}
MODELS = TINY | {
    "roberta": Tiny(roberta, text_batch, _PROJECTIONS | {"task_type": TaskType.SEQ_CLS}),
    "bert_for_questions": Tiny(bert_for_questions, text_batch, _PROJECTIONS | {"task_type": TaskType.QUESTION_ANS}),
    "llama_for_sequences": Tiny(
        llama_for_sequences, text_batch, {"target_modules": ["q_proj", "v_proj"], "task_type": TaskType.SEQ_CLS}
    ),
}


def adapted(
    tiny: Tiny,
    method: Transform | None = None,
    lora: dict[str, Any] | None = None,
    *,
    fast: bool = True,
    **changes: Any,
) -> Any:
    """A tiny model with an adapter whose B is not zero, and a method attached."""
    torch.manual_seed(0)
    model = get_peft_model(
        tiny.build(**({"initializer_range": 0.2} | changes)),
        LoraConfig(r=4, lora_alpha=8, **(tiny.lora | (lora or {}))),
    )
    draw = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=draw)
    rmlora.attach(model, method or rmlora.DropFeatures(p=0.3), fast=fast)
    return model.eval()


def inputs_of(tiny: Tiny, size: int) -> dict[str, Tensor]:
    """A batch without labels; the last text is shorter than the others."""
    batch = {name: value for name, value in tiny.batch(size).items() if name != "labels"}
    if "attention_mask" in batch and size > 1:
        batch["attention_mask"][-1, 5:] = 0
    return batch


@torch.no_grad()
def one_by_one(model: Any, inputs: dict[str, Tensor], n: int, seed: int = 0) -> list[Any]:
    """The outputs of n explicit passes, one instance each."""
    live = rmlora.attached(model)[0]._binding
    before, live.seed, live.sampling = live.seed, seed, True
    outputs = []
    for instance in range(n):
        live.microbatch, live.instance, live.instances = 0, instance, 1
        outputs.append(model(**inputs))
    live.seed, live.instance, live.sampling = before, 0, False
    return outputs
