"""Inputs nobody wrote on purpose: numbers at the edge, texts that mean something elsewhere, values of another kind."""

import json
from typing import Any

from hypothesis import strategies as st

from rmlora.config import setting_names
from rmlora.methods import METHODS

NASTY = (
    "",
    " ",
    "null",
    "../../../outside",
    "/outside",
    "~",
    "a\x00b",
    "\ud800",
    "\u202e\ufeff",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</td></table><svg onload=alert(1)>",
    "&lt;b&gt;",
    "]]>-->",
    "\\input{/etc/passwd}",
    'a,b\n"c',
    "=1+1",
    "%s %n {0} {x}",
    "é" * 300,
    "1e999",
    "nan",
)
texts = st.one_of(st.sampled_from(NASTY), st.text(max_size=12))
numbers = st.one_of(
    st.integers(-3, 10),
    st.sampled_from([2**31, 2**63, 2**64, -(2**63), 10**30, 1e-320, 1e308, -0.0, 0.5, float("inf"), float("nan")]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
knobs = sorted({knob for method in METHODS.values() for knob in method.knobs})
names = st.one_of(
    st.sampled_from([*setting_names(), *(f"method_args.{knob}" for knob in knobs)]),
    texts.map(lambda text: f"data.{text}"),
)
methods = st.sampled_from(sorted(METHODS))
small = st.integers(0, 70)
shares = st.sampled_from([0.0, 1e-9, 0.1, 0.5, 0.999, 1.0])
modules = st.sampled_from(["query", "[", ".*", "", "(?P<a>x)\\1", "all-linear", "auto", "classifier", "embeddings"])
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "lora.r": small,
    "lora.lora_alpha": numbers,
    "lora.scale": numbers,
    "lora.lora_dropout": shares,
    "lora.target_modules": modules | st.lists(modules, max_size=2) | texts,
    "lora.ranks": st.sampled_from(["equal", "linear"]),
    "lora.rank_ratio": numbers,
    "lora.use_dora": st.booleans(),
    "lora.use_rslora": st.booleans(),
    "lora.init_lora_weights": st.sampled_from([True, False, "pissa", "olora", "gaussian", "orthogonal", "eva", "x"]),
    "training.epochs": small,
    "training.lr": numbers,
    "training.batch_size": numbers,
    "training.gradient_accumulation_steps": numbers,
    "training.optimizer": st.sampled_from(["sgd", "adafactor", "adamw_torch", "adamw_8bit", "lomo", "muon"]) | texts,
    "training.lr_scheduler": st.sampled_from(["cosine", "polynomial", "reduce_lr_on_plateau"]) | texts,
    "training.warmup_steps": numbers | shares,
    "training.metric": st.sampled_from(["f1", "pearson", "accuracy", "matthews"]) | texts,
    "training.save": st.sampled_from(["best", "last"]),
    "training.report_to": st.lists(texts, max_size=1),
    "data.max_length": small,
    "data.train_examples": small,
    "data.train_per_class": small,
    "data.eval_examples": small,
    "data.num_labels": small,
    "data.label_names": st.lists(texts, max_size=3),
    "data.text": texts,
    "data.label": texts | st.just("sentence1"),
    "data.holdout": shares,
    "data.glue": st.sampled_from(["rte", "mnli", "stsb", "cola"]) | texts,
    "data.train": texts,
    "evaluation.ensemble": small,
    "evaluation.chunk": small,
    "task": st.sampled_from(["text-regression", "causal-lm", "question-answering", "image-classification"]),
    "scope": st.sampled_from(["head", "whole"]),
    "method_args.weight": numbers,
    "method_args.directions": numbers | shares,
    "output": texts,
}
likely = st.sampled_from(sorted(LIKELY)).flatmap(lambda name: st.tuples(st.just(name), LIKELY[name]))
arguments = st.sampled_from([f"method_args.{knob}" for knob in knobs]).flatmap(
    lambda name: st.tuples(st.just(name), numbers | shares)
)
likely_changes = st.lists(likely | arguments, min_size=1, max_size=3).map(dict)
changes = st.dictionaries(names, values, min_size=1, max_size=3)

columns = st.sampled_from(["sentence1", "sentence2", "label", "text", "prompt", "completion", "question", "context"])
rows = st.lists(st.dictionaries(columns | texts, values, max_size=4), max_size=5)
fit_rows = st.lists(
    st.fixed_dictionaries({"sentence1": texts, "sentence2": texts, "label": st.one_of(st.integers(0, 2), scalars)}),
    min_size=1,
    max_size=6,
)


def as_jsonl(found: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in found).encode()


HARD = (
    b'{"label": ' + b"9" * 5000 + b"}",
    b"[" * 20000,
    b'{"a": ' * 20000,
    b'{"sentence1": "a", "sentence2": "b", "label": 100000000000}\n',
    b'{"sentence1": "\\ud800", "sentence2": "b", "label": 0}\n{"sentence1": "a", "sentence2": "b", "label": 1}\n',
)
HARD_YAML = (
    b"model: 2001-13-45",
    b"model: !!int x",
    b"model: !!float []",
    b"model: !!timestamp x",
    b"model: !!binary x",
    b"model: !!python/object/apply:os.system [touch /outside]",
    b"? [a]\n: b",
    b"<<: 1",
    b"a: &a [*a]",
    b"[" * 2000,
    b"x: {" * 2000,
    b"--- a\n--- b",
)

jsonl = st.one_of(
    st.sampled_from(HARD),
    fit_rows.map(as_jsonl),
    rows.map(as_jsonl),
    values.map(lambda v: json.dumps(v).encode()),
    st.binary(max_size=40),
)
cells = st.one_of(texts, st.integers(-1, 3).map(str), st.just('"'))
csv = st.one_of(
    st.lists(st.lists(cells, min_size=1, max_size=4), max_size=6).map(
        lambda table: "\n".join([",".join(["sentence1", "label"]), *(",".join(row) for row in table)])
    ),
    st.text(alphabet=',;"\n\t ab1\x00é', max_size=60),
).map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=40)
