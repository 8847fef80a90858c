"""Repeating batches of every shape, and joining outputs of every form."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

import rmlora


def test_batches_of_every_shape_are_repeated():
    x = torch.arange(6).view(3, 2)
    batch = {"ids": x, "more": [x, (x, "text", None)], "positions": torch.zeros(1, 2), "one": torch.tensor(2.0)}
    batch |= {"num_items_in_batch": 7, "cache_position": torch.arange(3)}
    repeated = rmlora.repeat_rows(batch, 2)
    assert torch.equal(repeated["ids"], torch.cat([x, x]))
    assert torch.equal(repeated["more"][1][0], torch.cat([x, x]))
    assert repeated["more"][1][1:] == ("text", None)
    assert repeated["positions"].shape == (1, 2)
    assert repeated["one"] == 2.0
    assert repeated["num_items_in_batch"] == 14
    assert repeated["cache_position"].shape == (3,)


class Answers(nn.Module):
    """A model that returns what it is asked to."""

    def __init__(self, kind):
        super().__init__()
        self.layer, self.kind = nn.Linear(4, 2), kind

    def forward(self, batch):
        logits = self.layer(batch["x"])
        loss = nn.functional.cross_entropy(logits, batch["y"])
        if self.kind == "tuple":
            return loss, logits, ("name", batch["y"])
        if self.kind == "loss":
            return loss
        return SequenceClassifierOutput(loss=loss, logits=logits)


@pytest.mark.parametrize("kind", ["tuple", "loss", "output"])
@pytest.mark.parametrize("chunk", [None, 2])
def test_outputs_of_every_form_are_joined(kind, chunk):
    torch.manual_seed(0)
    model = get_peft_model(Answers(kind), LoraConfig(r=2, target_modules=["layer"]))
    rmlora.attach_replicated(model, rmlora.lora_dropout(0.0, instances=3), chunk=chunk, fast=False)
    batch = {"x": torch.randn(5, 4), "y": torch.tensor([0, 1, 0, 1, 1])}
    output = model.train()(batch)
    once = type(model).forward(model, batch)
    if kind == "loss":
        torch.testing.assert_close(output, once)
        return
    torch.testing.assert_close(output[0], once[0])
    torch.testing.assert_close(output[1], once[1])
    assert type(output) is type(once)
    if kind == "tuple":
        assert output[2][0] == "name"
        assert torch.equal(output[2][1], batch["y"])
