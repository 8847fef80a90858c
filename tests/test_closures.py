"""A closure given to `optimizer.step`: the gradients appear after the pre-hook."""

import torch

import rmlora
from tests import toys


def test_a_closure_gives_the_same_weights_as_a_plain_step():
    plain, closed = toys.make_model(), toys.make_model()
    for model in (plain, closed):
        rmlora.attach(model, rmlora.rm_lora(1e-2, 3, policy="state"))
    toys.train(plain, steps=5)
    optimizer = toys.make_optimizer(closed)
    for step in range(5):

        def closure(step=step):
            optimizer.zero_grad()
            return toys.compute_gradients(closed, step)

        optimizer.step(closure)
    toys.assert_equal_weights(toys.weights(plain), toys.weights(closed))


def test_a_closure_without_a_backward_does_not_add_the_penalty_twice():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.r_lora(1.0))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    gradients = []

    class EvaluatesTwice(torch.optim.SGD):
        def step(self, closure):
            with torch.enable_grad():
                closure()
                gradients.append(handle.pairs[0].parameters[0].grad.clone())
                closure()
                gradients.append(handle.pairs[0].parameters[0].grad.clone())
            return super().step()

    optimizer = EvaluatesTwice([p for p in model.parameters() if p.requires_grad], lr=0.0)
    calls = []

    def closure():
        if not calls:
            toys.compute_gradients(model, 0)
        calls.append(1)
        return torch.zeros(())

    optimizer.step(closure)
    assert len(calls) == 2
    assert torch.equal(*gradients)


def test_lbfgs_evaluates_the_closure_many_times_and_learns():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.r_lora(1e-3))
    optimizer = torch.optim.LBFGS([p for p in model.parameters() if p.requires_grad], max_iter=5)
    losses = []

    def closure():
        optimizer.zero_grad()
        losses.append(toys.compute_gradients(model, 0).item())
        return torch.tensor(losses[-1])

    optimizer.step(closure)
    assert handle.step == 1
    assert len(losses) > 2
    assert losses[-1] < losses[0]
