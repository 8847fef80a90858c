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


jsonl = st.one_of(
    fit_rows.map(as_jsonl), rows.map(as_jsonl), values.map(lambda v: json.dumps(v).encode()), st.binary(max_size=40)
)
cells = st.one_of(texts, st.integers(-1, 3).map(str), st.just('"'))
csv = st.one_of(
    st.lists(st.lists(cells, min_size=1, max_size=4), max_size=6).map(
        lambda table: "\n".join([",".join(["sentence1", "label"]), *(",".join(row) for row in table)])
    ),
    st.text(alphabet=',;"\n\t ab1\x00é', max_size=60),
).map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=40)
