"""Frozen blocks beside the trained pair: the forward pass, several links, saving at a larger rank, loading back."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import rmlora
from rmlora.errors import AdapterError, AttachError, StateError
from rmlora.saving import STATE_FILE
from tests import tiny, toys
from tests.dummies import AddBlock, DropInputs, GateDirections


def attached(method, steps=3, **lora):
    model = toys.make_model(**({"dropout": 0.0} | lora))
    handle = rmlora.attach(model, method)
    optimizer = toys.make_optimizer(model)
    toys.train(model, optimizer, steps=steps)
    return model, handle, optimizer


def ranks_of(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    return config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]


def assert_loads(model, folder, tolerance=1e-12):
    reloaded = PeftModel.from_pretrained(toys.make_base(), folder, autocast_adapter_dtype=False)
    torch.testing.assert_close(toys.outputs(reloaded), toys.outputs(model), rtol=0, atol=tolerance)
    return reloaded


def test_the_forward_pass_is_the_formula_and_gradients_reach_x_and_leaves_alone():
    _, handle, _ = attached(AddBlock(width=3))
    pair, (tensors, _) = handle.pairs[0], handle._binding.state
    x = toys.batch(7)[0].requires_grad_()
    y = pair.layer(x)
    A, B, size = tensors["0/A"][0], tensors["0/B"][0], tensors["0/size"]
    wanted = pair.layer.base_layer(x) + pair.scale * (x @ pair.A.T @ pair.B.T + size[0, 0, 0] * x @ A.T @ B.T)
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-12)
    inputs = (x, size, *pair.parameters)
    for found, right in zip(
        torch.autograd.grad(y.square().sum(), inputs), torch.autograd.grad(wanted.square().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(found, right, rtol=0, atol=1e-12)
    assert size[0, 0, 0] != 1.0, "it has learnt"
    assert {how.startswith("reference: the method acts in the forward pass") for how in handle.paths().values()} == {
        True
    }


def test_blocks_of_several_links_stand_behind_one_another_and_other_hooks_see_the_pair_alone(tmp_path):
    links = AddBlock(2), GateDirections(), AddBlock(3, value=-0.2), DropInputs()
    for method in (rmlora.chain(*links), rmlora.chain(*reversed(links))):
        model, handle, _ = attached(method)
        live = toys.outputs(model)
        assert {len(A) for A, _ in handle.fold().values()} == {8 + 2 + 3}
        model.save_pretrained(tmp_path)
        assert_loads(model, tmp_path)
        torch.testing.assert_close(toys.outputs(model.merge_and_unload()), live, rtol=0, atol=1e-12)


@pytest.mark.parametrize("is_root", [False, True])
def test_where_all_modules_are_wider_r_and_alpha_grow_and_every_scale_stays(is_root, tmp_path):
    model, handle, _ = attached(AddBlock(5), r=3, use_rslora=is_root)
    model.save_pretrained(tmp_path)
    r, alpha, *patterns = ranks_of(tmp_path)
    assert (r, patterns) == (8, [{}, {}])
    assert alpha / (8**0.5 if is_root else 8) == handle.pairs[0].scale
    assert_loads(model, tmp_path)


@pytest.mark.parametrize("is_root", [False, True])
def test_where_modules_differ_patterns_say_so(is_root, tmp_path):
    given = {"rank_pattern": {"0": 4}, "alpha_pattern": {"2": 5}, "use_rslora": is_root}
    model, handle, _ = attached(rmlora.only("^2$", AddBlock(5)), r=6, **given)
    assert [len(A) for A, _ in handle.fold().values()] == [4, 11]
    model.save_pretrained(tmp_path)
    assert_loads(model, tmp_path)
    assert ranks_of(tmp_path)[2] == {"0": 4, "2": 11}
    model, handle, _ = attached(rmlora.only("^2$", rmlora.chain(GateDirections(), AddBlock(5))))
    model.save_pretrained(tmp_path / "other")
    assert_loads(model, tmp_path / "other")


def test_merging_and_unmerging_return_to_where_they_began():
    model, _, _ = attached(AddBlock())
    live, before = toys.outputs(model), toys.weights(model)
    model.merge_adapter()
    torch.testing.assert_close(toys.outputs(model), live, rtol=0, atol=1e-12)
    model.unmerge_adapter()
    for name, value in toys.weights(model).items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-12)
    torch.testing.assert_close(toys.outputs(model), live, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [AddBlock(), rmlora.rac_lora(blocks=3, block_steps=2)])
def test_training_goes_on_from_the_folder_a_checkpoint_was_saved_to(method, tmp_path):
    straight, _, _ = attached(method, steps=7)
    first, _, optimizer = attached(method, steps=3)
    first.save_pretrained(tmp_path)
    assert (tmp_path / STATE_FILE).is_file()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    second = toys.make_model(dropout=0.0)
    handle = rmlora.attach(second, method, seed=0)
    second.load_adapter(tmp_path, "default", is_trainable=True)
    torch.testing.assert_close(toys.outputs(second), toys.outputs(first), rtol=0, atol=0)
    resumed = toys.make_optimizer(second)
    resumed.load_state_dict(optimizer.state_dict())
    toys.train(second, resumed, steps=4, start=3)
    assert handle.step == 7
    toys.assert_equal_weights(toys.weights(straight), toys.weights(second))


def test_a_wider_folder_without_state_is_refused_with_the_remedy(tmp_path):
    model, _, _ = attached(AddBlock())
    model.save_pretrained(tmp_path)
    (tmp_path / STATE_FILE).unlink()
    with pytest.raises(StateError, match="other ranks than the adapter in training"):
        model.load_adapter(tmp_path, "default")


def test_other_adapters_of_the_model_are_saved_as_they_are(tmp_path):
    model = toys.make_model(dropout=0.0)
    model.add_adapter("second", LoraConfig(r=4, target_modules=["0", "2"]))
    model.set_adapter("second")
    handle = rmlora.attach(model.double(), AddBlock(), adapter_name="second")
    toys.train(model, steps=2)
    model.save_pretrained(tmp_path)
    assert ranks_of(tmp_path)[0] == 8
    assert ranks_of(tmp_path / "second")[0] == 6
    assert handle.export(tmp_path / "exported").ranks == {"0": 6, "2": 6}
    assert_loads(model, tmp_path / "second") if not model.base_model.model[4].modules_to_save else None
    model.save_pretrained(tmp_path / "one", selected_adapters=["default"])
    assert not (tmp_path / "one" / "second").exists()


def test_convolutions_carry_blocks_on_channels(tmp_path):
    torch.manual_seed(0)

    def base():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(64, 3)).double()

    for method in (AddBlock(), rmlora.delta_lora(0.5), rmlora.rac_lora(blocks=2, block_steps=1)):
        config = LoraConfig(r=4, target_modules=["0", "1"])
        model = get_peft_model(base(), config, autocast_adapter_dtype=False).double()
        rmlora.attach(model, method)
        optimizer = toys.make_optimizer(model)
        x = torch.randn(5, 2, 4, 4, dtype=torch.float64)
        for _ in range(3):
            model(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        live = model.eval()(x)
        folder = tmp_path / type(method).__name__ / str(id(method))
        model.save_pretrained(folder)
        reloaded = PeftModel.from_pretrained(base(), folder, autocast_adapter_dtype=False).eval()
        torch.testing.assert_close(reloaded(x), live, rtol=0, atol=1e-12)
        torch.testing.assert_close(model.merge_and_unload()(x), live, rtol=0, atol=1e-12)


def test_embeddings_are_refused():
    model = get_peft_model(nn.Sequential(nn.Embedding(5, 4)), LoraConfig(r=2, target_modules=["0"]))
    with pytest.raises(AttachError, match="does not call modules for A and B"):
        rmlora.attach(model, AddBlock())


def test_deep_copies_and_checkpointing_see_the_same_blocks():
    model, _, _ = attached(rmlora.delta_lora(0.5))
    copied = copy.deepcopy(model)
    toys.train(copied, steps=2, start=3)
    assert toys.differ(toys.weights(model), toys.weights(copied))
    ends = []
    for checkpointed in (False, True):
        model = tiny.adapted("bert", dtype=torch.float64, base={"hidden_dropout_prob": 0.0})
        handle = rmlora.attach(model, rmlora.rac_lora(blocks=2, block_steps=2))
        if checkpointed:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        tiny.train(model, "bert", tiny.adamw(model), range(3))
        ends.append({name: B @ A for name, (A, B) in handle.fold().items()})
    assert tiny.distance(*ends) <= 1e-9


def test_under_autocast_blocks_compute_as_the_pair_does():
    model = toys.make_model(dtype=torch.float32, dropout=0.0)
    rmlora.attach(model, AddBlock())
    x, _ = toys.batch(0, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    y.float().square().sum().backward()
    torch.testing.assert_close(y.float(), model(x), rtol=0.05, atol=0.05)


def test_a_smaller_rank_is_the_best_there_is_and_its_error_is_told(tmp_path):
    model, handle, _ = attached(rmlora.rac_lora(blocks=3, block_steps=4), steps=12, alpha_pattern={"2": 8})
    done = handle.export(tmp_path / "small", rank=5)
    assert done.before == {"0": 24, "2": 24}
    assert done.ranks == {"0": 5, "2": 5}
    folded, lost, whole = handle.fold(), 0.0, 0.0
    reloaded = PeftModel.from_pretrained(toys.make_base(), tmp_path / "small", autocast_adapter_dtype=False)
    for pair in handle.pairs:
        A, B = folded[pair.name]
        dW = pair.scale * B @ A
        U, sigma, Vh = torch.linalg.svd(dW)
        best = U[:, :5] * sigma[:5] @ Vh[:5]
        found = reloaded.get_submodule(f"base_model.model.{pair.name}").get_delta_weight("default")
        torch.testing.assert_close(found, best, rtol=0, atol=1e-12)
        lost, whole = lost + (dW - best).square().sum(), whole + dW.square().sum()
        assert done.errors[pair.name] == pytest.approx(((dW - best).norm() / dW.norm()).item(), rel=1e-9)
    assert done.error == pytest.approx((lost / whole).sqrt().item(), rel=1e-9)
    whole = handle.export(tmp_path / "whole", rank=100)
    assert whole.error == 0.0
    assert_loads(model, tmp_path / "whole")
    with pytest.raises(AdapterError, match="rank=0; an adapter has at least one direction"):
        handle.export(tmp_path / "none", rank=0)
    with pytest.raises(AdapterError, match="is not an empty folder"):
        handle.export(tmp_path / "small", rank=5)


def test_only_what_is_there_is_counted_and_measured():
    from rmlora.analysis.counts import count_parameters
    from rmlora.run.record import measure_adapter

    model, handle, _ = attached(rmlora.only("^2$", rmlora.delta_lora(0.5, start_step=1)))
    counts = count_parameters(model, handle)
    assert counts.kept_adapter == 8 * (12 + 16) + 2 * 8 * (16 + 16)
    assert measure_adapter(handle)["rank"] > 0
