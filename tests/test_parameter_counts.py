"""Law 9: the parameter counts of Table 1 on the real DeBERTa-v3-base geometry, built without memory."""

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

PROJECTIONS = ["query_proj", "key_proj", "value_proj", "attention.output.dense", "intermediate.dense", "output.dense"]

# The published configuration of microsoft/deberta-v3-base, written out: no network is needed to know it.
DEBERTA_V3_BASE = DebertaV2Config(
    vocab_size=128100,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    max_position_embeddings=512,
    relative_attention=True,
    position_buckets=256,
    norm_rel_ebd="layer_norm",
    share_att_key=True,
    pos_att_type="p2c|c2p",
    max_relative_positions=-1,
    position_biased_input=False,
    type_vocab_size=0,
    layer_norm_eps=1e-7,
    pooler_hidden_size=768,
    pooler_hidden_act="gelu",
    pooler_dropout=0.0,
    num_labels=2,
)


def adapted(r):
    with torch.device("meta"):
        base = DebertaV2ForSequenceClassification(DEBERTA_V3_BASE)
        config = LoraConfig(
            r=r,
            target_modules=PROJECTIONS,
            modules_to_save=["pooler", "classifier"],
            task_type=TaskType.SEQ_CLS,
        )
        return get_peft_model(base, config)


def trainable(model, *, in_adapter):
    named = model.named_parameters()
    return sum(p.numel() for name, p in named if p.requires_grad and ("lora_" in name) == in_adapter)


@pytest.mark.parametrize(("r", "adapter", "with_head"), [(4, 663_552, 1_255_682), (8, 1_327_104, 1_919_234)])
def test_table_1_parameter_counts_of_deberta_v3_base(r, adapter, with_head):
    model = adapted(r)
    assert trainable(model, in_adapter=True) == adapter == 165_888 * r
    assert trainable(model, in_adapter=True) + trainable(model, in_adapter=False) == with_head
    assert trainable(model, in_adapter=False) == 592_130
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_six_projections_of_twelve_layers_are_adapted_and_no_other():
    names = [name for name, _ in adapted(4).named_parameters() if name.endswith("lora_A.default.weight")]
    assert len(names) == 72
    per_layer = {layer: sum(f".layer.{layer}." in name for name in names) for layer in range(12)}
    assert set(per_layer.values()) == {6}


def test_the_base_model_has_its_published_size():
    with torch.device("meta"):
        base = DebertaV2ForSequenceClassification(DEBERTA_V3_BASE)
    assert round(sum(p.numel() for p in base.parameters()) / 1e6) == 184
