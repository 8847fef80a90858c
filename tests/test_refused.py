"""What attach cannot act on is refused at once, in one line that names what was found and what to do."""

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PrefixTuningConfig,
    TaskType,
    VeraConfig,
    get_peft_model,
)
from torch import nn

import rmlora
from rmlora.errors import AttachError
from tests import tiny

METHOD = rmlora.rm_lora(weight=1e-2, directions=2)
TARGETS = {"target_modules": ["q_proj", "v_proj"]}


class Experts(nn.Module):
    """A mixture that holds bare 3-d parameters, which PEFT adapts through `target_parameters` only."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 8, 8))

    def forward(self, x):
        return torch.einsum("bi,eoi->bo", x, self.weight)


def of_llama(config):
    torch.manual_seed(0)
    return get_peft_model(tiny.llama(), config)


def of_experts():
    return get_peft_model(nn.Sequential(Experts()), LoraConfig(r=2, target_parameters=["0.weight"]))


def of_grouped_convolution():
    return get_peft_model(nn.Sequential(nn.Conv2d(4, 4, 1, groups=2)), LoraConfig(r=4, target_modules=["0"]))


REFUSED = {
    "plain": (tiny.llama, "a plain LlamaForCausalLM without PEFT layers"),
    "adalora": (lambda: of_llama(AdaLoraConfig(total_step=10, **TARGETS)), "SVDLinear"),
    "ia3": (lambda: of_llama(IA3Config(feedforward_modules=[], **TARGETS)), "ia3"),
    "loha": (lambda: of_llama(LoHaConfig(**TARGETS)), "loha"),
    "oft": (lambda: of_llama(OFTConfig(oft_block_size=4, **TARGETS)), "oft"),
    "vera": (lambda: of_llama(VeraConfig(target_modules=["o_proj"])), "vera"),
    "prefix": (
        lambda: of_llama(PrefixTuningConfig(num_virtual_tokens=2, task_type=TaskType.CAUSAL_LM)),
        "no LoRA modules",
    ),
    "target_parameters": (of_experts, "target_parameters"),
    "grouped": (of_grouped_convolution, "grouped convolution"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_models_without_pairs_are_refused_naming_what_was_found(case):
    make, found = REFUSED[case]
    with pytest.raises(AttachError) as caught:
        rmlora.attach(make(), METHOD)
    message = str(caught.value)
    assert found.lower() in message.lower()
    assert "\n" not in message


@pytest.mark.parametrize("case", ["adalora", "target_parameters", "plain"])
@pytest.mark.filterwarnings("ignore")
def test_a_refused_model_is_left_as_it_was(case):
    model = REFUSED[case][0]()
    types, methods = [type(module) for module in model.modules()], set(vars(model))
    with pytest.raises(AttachError):
        rmlora.attach(model, METHOD)
    assert [type(module) for module in model.modules()] == types
    assert set(vars(model)) == methods
    assert rmlora.attached(model) == []


@pytest.mark.filterwarnings("ignore")
def test_target_parameters_are_refused_by_the_config_too():
    with pytest.raises(AttachError, match="without calling RMLoraConfig"):
        get_peft_model(nn.Sequential(Experts()), rmlora.RMLoraConfig(r=2, target_parameters=["0.weight"]))


def mark_as_zero3(parameter):
    parameter.ds_id = 7
    parameter.data = parameter.data.new_empty(0)  # what is there lies elsewhere


def mark_as_zero_bf16(parameter):
    parameter._hp_mapping = object()


@pytest.mark.parametrize("mark", [mark_as_zero3, mark_as_zero_bf16])
def test_peft_1402_deepspeed_parameters_are_refused_by_name_when_attaching(mark):
    model = tiny.adapted("llama")
    for parameter in tiny.trained(model):
        mark(parameter)
    with pytest.raises(AttachError, match=r"q_proj.*DeepSpeed ZeRO.*use DDP"):
        rmlora.attach(model, METHOD)


@pytest.mark.parametrize("mark", [mark_as_zero3, mark_as_zero_bf16])
def test_deepspeed_that_comes_after_attaching_is_refused_at_the_first_forward(mark):
    model = tiny.adapted("llama")
    rmlora.attach(model, METHOD)
    for parameter in tiny.trained(model):
        mark(parameter)
    for _ in range(2):  # an error that is caught once must not come to nothing the second time
        with pytest.raises(AttachError, match=r"q_proj.*DeepSpeed ZeRO.*use DDP") as caught:
            model(**tiny.inputs("llama"))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mark", [mark_as_zero3, mark_as_zero_bf16])
def test_deepspeed_that_empties_a_given_optimizer_is_refused_at_its_step(mark):
    model = tiny.adapted("llama")
    optimizer = tiny.adamw(model)
    rmlora.attach(model, METHOD, optimizer=optimizer)
    flat = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in tiny.trained(model)]).clone())
    optimizer.param_groups[0]["params"] = [flat]
    for parameter in tiny.trained(model):
        mark(parameter)
    flat.grad = torch.ones_like(flat)
    with pytest.raises(AttachError, match="DeepSpeed ZeRO"):
        optimizer.step()
