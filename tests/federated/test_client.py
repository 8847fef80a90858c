from collections.abc import Callable

import pytest
import torch

from rmlora.errors import ConfigError, DivergedError
from rmlora.federated.averaging import State, average
from rmlora.federated.client import train_client
from rmlora.federated.settings import complete_federated
from rmlora.federated.site import Site, make_site
from rmlora.federated.turns import client_seed, part_of, parts_before, parts_of_round
from rmlora.heads.fitting import batch_order
from rmlora.tasks.encode import pad_texts
from tests.federated.conftest import Configure

MakeSite = Callable[..., Site]
SLOW_PATH = {"fast": False, "lr_scheduler": "constant"}


def alternating_lora(site: Site, rounds: int, lr: float) -> State:
    """RoLoRA of one client, written down without rmlora: freeze one factor, train the other, with a new AdamW."""
    model, pad = site.model, pad_texts(site.processor)
    named = dict(model.named_parameters())
    for number in range(1, rounds + 1):
        frozen = ".lora_A." if number % 2 else ".lora_B."
        for name in site.initial:
            named[name].requires_grad_(frozen not in name)
        seed = client_seed(site.config.training.seed, number, 0)
        torch.manual_seed(seed)
        learning = [named[name] for name in site.initial if frozen not in name]
        optimizer = torch.optim.AdamW(learning, lr=lr, weight_decay=0.0, fused=True)
        model.train()
        for batch in next(iter(batch_order(len(site.data.train), 8, 1, seed))):
            loss = model(**pad([site.encoded["train"][i] for i in batch])).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return {name: named[name].detach().clone() for name in site.initial}


def rounds_of_one(site: Site, rounds: int) -> State:
    state: State = {}
    for number in range(1, rounds + 1):
        state |= average([train_client(site, number, 0, state)])
    return site.initial | state


@pytest.mark.parametrize("fast", [False, True])
def test_rolora_of_one_client_is_alternating_lora(site: MakeSite, fast: bool) -> None:
    training = SLOW_PATH | {"fast": fast}
    told = {"federated": {"clients": 1}, "training": training}
    with torch.random.fork_rng():
        reference = alternating_lora(site(**told), 4, 1e-2)
    own = rounds_of_one(site(**told), 4)
    for name, tensor in reference.items():
        if fast:
            torch.testing.assert_close(own[name], tensor, rtol=0, atol=2e-4)
        else:
            assert torch.equal(own[name], tensor), name
    assert any(tensor.abs().max() > 0.01 for name, tensor in own.items() if part_of(name) == "B")


@pytest.mark.parametrize("factors", ["alternate", "both", "b"])
def test_a_client_sends_what_the_round_trains_and_nothing_else_moves(site: MakeSite, factors: str) -> None:
    where = site(federated={"factors": factors})
    told = where.config.federated
    state: State = {}
    for number in (1, 2):
        update = train_client(where, number, 0, state)
        assert {part_of(name) for name in update.state} == parts_of_round(told, number)
        assert update.examples == len(where.deal[0])
        assert update.steps == -(-update.examples // 8)
        now = {name: p.detach() for name, p in where.model.named_parameters()}
        for name, tensor in (where.initial | state).items():
            assert torch.equal(now[name], update.state.get(name, tensor))
        moved = [name for name, tensor in update.state.items() if not torch.equal(tensor, where.initial[name])]
        assert {part_of(name) for name in moved} >= parts_of_round(told, number) - {"A"}
        state |= update.state
    assert {part_of(name) for name in state} == parts_before(told, 3)


@pytest.mark.parametrize("method", ["lora", "r-lora", "gm-lora", "rm-lora"])
def test_a_client_sends_the_same_bits_whoever_trained_before_it(site: MakeSite, method: str) -> None:
    told = {"method": method, "lora": {"lora_dropout": 0.2}}
    where, other = site(**told), site(**told)
    for client in (2, 1):
        train_client(where, 1, client, {})
    sent = train_client(where, 2, 0, {})
    alone = train_client(other, 2, 0, {})
    assert all(torch.equal(tensor, sent.state[name]) for name, tensor in alone.state.items())
    assert alone.loss == sent.loss


def test_the_global_generator_and_what_learns_are_left_as_they_were(site: MakeSite) -> None:
    where = site(method="rm-lora")
    learns = [p.requires_grad for p in where.model.parameters()]
    torch.manual_seed(7)
    before = torch.get_rng_state()
    train_client(where, 1, 0, {})
    assert torch.equal(torch.get_rng_state(), before)
    assert [p.requires_grad for p in where.model.parameters()] == learns
    assert all(p.grad is None for p in where.model.parameters())


def test_masks_are_drawn_by_seed_round_and_client(site: MakeSite) -> None:
    where = site(method="gm-lora", method_args={"directions": 1}, federated={"local_steps": 1})
    drawn = {}
    for number in (1, 3):
        for client in (0, 1, 2):
            state = train_client(where, number, client, {}).state
            columns = [tensor.ne(0).any(0) for name, tensor in state.items() if part_of(name) == "B"]
            assert all(int(kept.sum()) == 1 for kept in columns)
            drawn[number, client] = tuple(int(kept.nonzero()) for kept in columns)
    assert len(set(drawn.values())) == 6


def test_local_steps_go_on_over_more_than_one_pass(site: MakeSite) -> None:
    where = site(federated={"local_steps": 9})
    assert all(train_client(where, 1, client, {}).steps == 9 for client in range(3))


def test_a_client_whose_weights_are_lost_says_so(site: MakeSite) -> None:
    where = site(training={"lr": 1e30})
    with pytest.raises(DivergedError, match=r"no longer a number|loss is nan"):
        train_client(where, 1, 0, {})


def test_a_client_that_is_none_and_tensors_of_another_model_are_refused(site: MakeSite) -> None:
    where = site()
    with pytest.raises(ConfigError, match="no client 3"):
        train_client(where, 1, 3, {})
    name = next(iter(where.initial))
    with pytest.raises(ConfigError, match="which this client's model does not have"):
        train_client(where, 1, 0, {name: torch.zeros(1)})


def test_a_client_with_a_file_of_its_own_trains_on_all_of_it(configure: Configure) -> None:
    own = make_site(complete_federated(configure(federated={"clients": 3})), own=True)
    assert own.deal == [list(range(40))] * 3
    assert train_client(own, 1, 2, {}).examples == 40


def test_sites_of_one_configuration_have_one_fingerprint(site: MakeSite) -> None:
    where, again, other = site(), site(), site(training={"seed": 1})
    before = where.fingerprint()
    assert before == again.fingerprint() != other.fingerprint()
    train_client(where, 1, 0, {})
    assert where.fingerprint() == before
