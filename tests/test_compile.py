"""torch.compile: no more graph breaks than plain PEFT, no recompilation as steps go on, the weights of eager mode."""

import functools

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import rmlora
from tests import tiny

METHODS = {
    "paper": rmlora.rm_lora(weight=1e-2, directions=2),
    "authors": rmlora.rm_lora(directions=2, preset="authors"),
    "strict": rmlora.rm_lora(weight=1e-2, directions=2, preset="strict"),
}
STEPS = 5
# The problem type is given because classifiers otherwise guess it in their first forward, and are compiled again.
CLASSIFIER = {
    "num_hidden_layers": 1,
    "problem_type": "single_label_classification",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
LAYERS = {
    "bert": CLASSIFIER,
    "deberta": CLASSIFIER,
    "gpt2": {"n_layer": 1},
    "llama": {"num_hidden_layers": 1},
}


@pytest.fixture(autouse=True)
def _forget_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def start(name, method):
    model = tiny.adapted(name, base=LAYERS[name]).train()
    if method is not None:
        rmlora.attach(model, METHODS[method])
    return model


@functools.cache
def count_graphs(name, method):
    """Compile without code generation and train; return graphs after each step, and breaks."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, frames = start(name, method), []
    optimizer, counter = tiny.adamw(model), CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter)
    for step in range(STEPS):
        compiled(**tiny.inputs(name, seed=step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        frames.append(counter.frame_count)
    return frames, sum(torch._dynamo.utils.counters["graph_break"].values())


# GPT-2 is here because its own forward pass breaks the graph.
COUNTED = [("bert", method) for method in METHODS]
COUNTED += [pytest.param(name, "paper", marks=pytest.mark.slow) for name in ("gpt2", "deberta")]


@pytest.mark.parametrize(("name", "method"), COUNTED)
def test_a_method_adds_no_graph_break_and_no_recompilation(name, method):
    plain, breaks = count_graphs(name, None)
    frames, method_breaks = count_graphs(name, method)
    assert method_breaks == breaks
    assert frames == plain
    assert plain == plain[:1] * STEPS


def train(name, method, compile):
    model = start(name, method)
    optimizer, forward = tiny.adamw(model), compile(model)
    for step in range(STEPS):
        forward(**tiny.inputs(name, seed=step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return tiny.learnt(model)


COMPILERS = [
    pytest.param("bert", "paper", "aot_eager"),
    pytest.param("llama", "strict", "aot_eager"),
    pytest.param("bert", "paper", "inductor", marks=pytest.mark.slow),
    pytest.param("deberta", "paper", "inductor", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "method", "backend"), COMPILERS)
def test_a_compiled_model_ends_at_the_weights_of_eager_mode(name, method, backend):
    eager = train(name, method, lambda model: model)
    compiled = train(name, method, lambda model: torch.compile(model, backend=backend))
    plain = train(name, None, lambda model: model)
    assert tiny.distance(eager, plain) > 1e-3
    assert tiny.distance(eager, compiled) <= 1e-6


def test_a_model_compiled_in_place_is_attached_to_by_its_own_names():
    model = tiny.adapted("bert", base=LAYERS["bert"])
    names = {pair.name for pair in rmlora.attach(model, METHODS["paper"]).pairs}
    wrapped = torch.compile(tiny.adapted("bert", base=LAYERS["bert"]), backend="eager")
    assert {pair.name for pair in rmlora.attach(wrapped, METHODS["paper"]).pairs} == names
