import pytest
import torch

from rmlora.federated.averaging import Dropped, State, Update, average, averaging_error, sift

NAMES = [f"layer.{i}.lora_{side}.default.weight" for i in range(3) for side in "AB"]


def state(seed: int, names: list[str] = NAMES) -> State:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: (4, 12) if ".lora_A." in name else (10, 4) for name in names}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def updates(side: str) -> list[Update]:
    names = [name for name in NAMES if f".lora_{side}." in name or side == "AB"]
    return [Update(i, examples, 1, 0.0, state(i + 1, names)) for i, examples in enumerate((3, 5, 40))]


def products(tensors: State) -> torch.Tensor:
    """All B A of a state, one after the other, in float64."""
    pairs = zip(NAMES[::2], NAMES[1::2], strict=True)
    return torch.cat([(tensors[B].double() @ tensors[A].double()).flatten() for A, B in pairs])


@pytest.mark.parametrize("side", ["A", "B", "AB"])
def test_the_product_of_averages_is_the_average_of_products_where_one_factor_is_common(side: str) -> None:
    before, sent = state(0), updates(side)
    after = before | average(sent)
    mean = sum(update.examples / 48 * products(before | update.state) for update in sent)
    lost = float((mean - products(after)).norm())
    error, relative = averaging_error(before, sent, after)
    assert error == pytest.approx(lost, rel=1e-6, abs=1e-5)
    assert relative == pytest.approx(lost / float(mean.norm()), rel=1e-6, abs=1e-6)
    assert (relative < 1e-6) == (side != "AB")
    assert (relative > 0.1) == (side == "AB")


def test_clients_are_weighted_by_their_examples_and_sums_are_exact() -> None:
    sent = updates("AB")
    for name, tensor in average(sent).items():
        mean = sum(u.examples * u.state[name].double() for u in sent) / 48
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, mean.float(), rtol=1e-7, atol=1e-7)


def test_one_client_alone_is_taken_as_it_is() -> None:
    (own,) = updates("B")[:1]
    assert all(torch.equal(tensor, own.state[name]) for name, tensor in average([own]).items())


def test_the_order_of_the_replies_changes_nothing() -> None:
    sent, expected = updates("AB"), state(0)
    forward, _ = sift(sent, [0, 1, 2], expected)
    backward, _ = sift(reversed(sent), [0, 1, 2], expected)
    a, b = average(forward), average(backward)
    assert all(torch.equal(a[name], b[name]) for name in NAMES)


def test_what_cannot_be_averaged_is_dropped_and_said_why() -> None:
    expected = state(0)
    good, first = state(1), NAMES[0]
    bad = [
        Update(0, 5, 1, 0.0, good),
        Update(1, 5, 1, 0.0, good | {first: torch.full((4, 12), float("nan"))}),
        Update(2, 5, 1, 0.0, good | {first: torch.full((4, 12), float("inf"))}),
        Update(3, 5, 1, 0.0, good | {first: torch.zeros(5, 12)}),
        Update(4, 5, 1, 0.0, {name: good[name] for name in NAMES[1:]}),
        Update(5, 5, 1, 0.0, good | {"other": torch.zeros(1)}),
        Update(6, 0, 0, 0.0, good),
        Dropped(7, "it died"),
        Update(99, 5, 1, 0.0, good),
    ]
    kept, dropped = sift(bad, list(range(9)), expected)
    assert [update.client for update in kept] == [0]
    assert {one.client: one.why for one in dropped} == {
        1: f"{first} holds nan or infinity",
        2: f"{first} holds nan or infinity",
        3: f"{first} has the shape (5, 12) instead of (4, 12)",
        4: f"it did not send {first}",
        5: "it sent other, which this round does not train",
        6: "it trained on 0 examples",
        7: "it died",
        8: "it did not answer",
    }
