"""T and I: parameters at the start and at inference, for every method, with and without the head."""

import pytest
import torch
from safetensors.torch import load_file

import rmlora
from rmlora.analysis.counts import ParameterCounts, check_same_inference_budget, count_parameters
from rmlora.errors import ConfigError
from rmlora.methods import METHODS
from tests import toys
from tests.test_parameter_counts import adapted as deberta

A_AND_B = 8 * (toys.D_IN + toys.HIDDEN) + 8 * (toys.HIDDEN + toys.HIDDEN)
HEAD = toys.HIDDEN * toys.CLASSES + toys.CLASSES
BEYOND = {"sora": 16, "adalora": 16, "beamlora": 16, "bilora": 16}  # gates; values; scores; values
BEYOND |= {"polar": 128, "stella": 128}  # matrices between A and B
PRUNES = {"sora", "adalora"}
KNOBS = {"sora": {"threshold": 2e-2}}


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].adapts != "VERA"])
def test_every_method_tells_what_it_trains_and_what_it_keeps(name, tmp_path):
    if METHODS[name].trains_base:
        base = toys.make_base()
        every = sum(p.numel() for p in base.parameters())
        assert count_parameters(base) == ParameterCounts(0, 0, 0, every)
        return
    model = toys.make_model(adapts=METHODS[name].adapts)
    method = METHODS[name].build(**KNOBS.get(name, {}))
    handle = rmlora.attach(model, method, provides=method.needs)
    toys.train(model, steps=30)
    counts = count_parameters(model, handle)
    assert counts.trained_adapter == A_AND_B + BEYOND.get(name, 0)
    assert (counts.head, counts.base) == (HEAD, 0)
    assert counts.trained == counts.trained_adapter + HEAD
    exported = handle.export(tmp_path / "out")
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    size = sum(value.numel() for key, value in written.items() if "lora_" in key)
    silent = sum(len(A[0]) + len(B) for n, (A, B) in handle.fold().items() if n in exported.silent)
    assert counts.kept_adapter == size - silent
    assert (counts.kept_adapter < A_AND_B) == (name in PRUNES)


def test_planned_counts_of_adalora_are_those_of_lora_at_its_target():
    lora = count_parameters(toys.make_model(r=5))
    planned = count_parameters(toys.make_model(adapts="ADALORA", r=8), kept_r=5)
    assert planned.kept_adapter == lora.kept_adapter
    assert planned.trained_adapter == A_AND_B + 16
    check_same_inference_budget({"lora": lora, "adalora": planned})


@pytest.mark.parametrize(("r", "adapter", "with_head"), [(4, 663_552, 1_255_682), (8, 1_327_104, 1_919_234)])
def test_both_tables_of_the_paper(r, adapter, with_head):
    counts = count_parameters(deberta(r))
    assert counts.trained_adapter == counts.kept_adapter == adapter
    assert counts.trained == counts.kept == with_head


def test_dora_keeps_its_magnitudes():
    counts = count_parameters(toys.make_model(use_dora=True))
    assert counts.trained_adapter == counts.kept_adapter == A_AND_B + 2 * toys.HIDDEN


def test_an_unequal_budget_is_refused_and_names_both():
    lora, wide = (count_parameters(toys.make_model(r=r)) for r in (4, 5))
    check_same_inference_budget({})
    check_same_inference_budget({"lora": lora, "r-lora": lora})
    check_same_inference_budget({"lora": lora, "wide": wide}, tolerance=0.25)
    with pytest.raises(ConfigError, match=r"wide keeps 300 parameters at inference and lora 240 \(25.0% more\)"):
        check_same_inference_budget({"lora": lora, "wide": wide}, tolerance=0.2)
    check_same_inference_budget({"lora": lora, "wide": wide}, with_head=True, tolerance=0.21)
    with pytest.raises(ConfigError, match="not both"):
        count_parameters(toys.make_model(), rmlora.attach(toys.make_model(), rmlora.lora()), kept_r=2)


def test_nothing_is_kept_of_an_adapter_that_never_learnt():
    model = toys.make_model()
    assert count_parameters(model, rmlora.attach(model, rmlora.lora())).kept_adapter == 0
    assert torch.equal(rmlora.attached(model)[0].pairs[0].B, torch.zeros(16, 8, dtype=torch.float64))
