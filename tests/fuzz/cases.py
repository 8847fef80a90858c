"""What is done with each kind of input; an error that is no RmloraError gets out."""

import json
import pickle
import shutil
from contextlib import suppress
from functools import cache
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from safetensors.numpy import save

from rmlora.analysis.adapters import inspect_adapter
from rmlora.analysis.present import print_report
from rmlora.compare.reading import read_study
from rmlora.config_source import merge, read_config, resolve
from rmlora.errors import RmloraError
from rmlora.methods import METHODS
from rmlora.report.write import write_report
from rmlora.run.choice import complete
from rmlora.run.plan import make_plan
from rmlora.run.show import show_plan
from rmlora.run.sources import KeptSources
from tests import runs
from tests.fuzz.watching import watched
from tests.report.fixture import FakeStudy

QUIET = Console(file=StringIO(), width=100)


@cache
def model(base: Path) -> tuple[Path, tuple[Path, Path], KeptSources]:
    """A tiny model and its data, read once for all cases."""
    folder = base / "model"
    return runs.save_bert(folder), runs.save_pairs(folder / "data", 8, 4), KeptSources()


def plan(told: dict[str, Any], sources: KeptSources) -> None:
    with suppress(RmloraError):
        config = complete(resolve(told))
        show_plan(QUIET, make_plan(config, sources))


def any_config(folder: Path, data: bytes) -> None:
    """A file that may be no configuration at all, as a run and as a study."""
    path = folder / "run.yaml"
    path.write_bytes(data)
    with watched(folder):
        with suppress(RmloraError):
            complete(resolve(read_config(path), str(path)))
        with suppress(RmloraError):
            read_study(path)


def changed_config(folder: Path, told: tuple[str, dict[str, Any]]) -> None:
    """A configuration that would do, but for some settings: up to the plan, with a model."""
    where, files, sources = model(folder.parent)
    method, changes = told
    changes = {name: value for name, value in changes.items() if _suits(method, name)}
    base = runs.settings(where, files, folder / "out", method=method)
    with watched(folder), suppress(RmloraError):
        plan(merge(base, changes), sources)


def _suits(method: str, name: str) -> bool:
    """Whether a method has a knob; most have few of them, and a word about that is all that would ever be seen."""
    return not name.startswith("method_args.") or name.partition(".")[2] in METHODS[method].knobs


def changed_study(folder: Path, changes: dict[str, Any]) -> None:
    """The same of a study."""
    base: dict[str, Any] = {
        "name": "s",
        "models": ["m"],
        "seeds": [0, 1],
        "learning_rates": [1e-3],
        "methods": ["lora"],
    }
    base["tasks"] = [{"name": "t", "data": {"train": "a.csv", "eval": "b.csv"}}]
    for name, value in changes.items():
        base[name.rpartition(".")[2] if len(name) % 2 else name.partition(".")[0]] = value
    any_config(folder, yaml.safe_dump(base, allow_unicode=False).encode())


def data_file(folder: Path, told: tuple[str, str, bytes]) -> None:
    """A data file of any content: read, labelled and encoded."""
    suffix, task, data = told
    where, _, sources = model(folder.parent)
    path = folder / f"data.{suffix}"
    path.write_bytes(data)
    base = runs.settings(where, (path, path), folder / "out", task=task)
    sources.datas.clear()
    sources.parts.clear()
    with watched(folder):
        plan(base, sources)


class Malice:
    """A pickle that runs code when it is opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('a pickle was opened')",))


def adapter_folder(folder: Path, told: dict[str, Any]) -> None:
    """An adapter folder: its configuration, its tensors, its bytes."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]} | told["config"]
    (folder / "adapter_config.json").write_text(json.dumps(config)[: told["cut_config"]])
    tensors = {}
    for i, (name, shape, value) in enumerate(told["tensors"]):
        kind = np.int32 if value == "int" else np.float32
        tensors[f"layer.{i // 2}.{name}.weight"] = np.full(shape, 1 if value == "int" else value, kind)
    data = save(tensors)
    (folder / "adapter_model.safetensors").write_bytes(data[: told["cut"]] if told["cut"] is not None else data)
    if told["pickled"]:
        (folder / "adapter_model.safetensors").unlink()
        (folder / "adapter_model.bin").write_bytes(pickle.dumps(Malice()))
    with watched(folder):
        with suppress(RmloraError):
            print_report(inspect_adapter(folder), QUIET)
        with suppress(RmloraError):
            complete(resolve({"model": "m", "method": "lora", "init_adapter": str(folder)}))


TAGS = {
    *("html", "head", "meta", "title", "link", "style", "body", "h1", "h2", "h3", "p", "ul", "li", "div", "details"),
    *("summary", "table", "caption", "thead", "tbody", "tr", "th", "td", "span", "figure", "figcaption", "pre", "svg"),
    *("g", "path", "rect", "line", "polyline", "polygon", "circle", "text", "tspan", "defs", "use", "clippath", "desc"),
}


class Page(HTMLParser):
    """Refuses every element and attribute that a report has no use for."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        for name, value in attrs:
            assert not name.startswith("on"), name
            assert name not in ("src", "action", "formaction", "srcdoc"), name
            assert name not in ("href", "xlink:href") or (value or "").startswith(("data:,", "#")), value


@cache
def study(base: Path) -> Path:
    """A study of two methods and a seed, made once."""
    methods = {label: row for label, row in FakeStudy().methods.items() if label in ("LoRA", "RM-LoRA")}
    return FakeStudy(methods=methods, seeds=(0, 1)).write(base / "study")


def study_folder(folder: Path, told: dict[str, Any]) -> None:
    """A study's folder with values replaced and files damaged, and its report."""
    place = folder / "study"
    shutil.copytree(study(folder.parent), place, dirs_exist_ok=True)
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
    for number, name, value in told["rows"]:
        target = rows[number % len(rows)]
        *outer, last = name.split(".")
        for part in outer:
            target = target[part] if isinstance(target.get(part), dict) else target
        target[last] = value
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = yaml.safe_load((place / "study.yaml").read_text()) | told["spec"]
    (place / "study.yaml").write_text(yaml.safe_dump(spec, allow_unicode=False))
    if not told["curves"]:  # which take seconds to draw
        for path in place.glob("cells/*/metrics.jsonl"):
            path.unlink()
    files = sorted(path for path in place.rglob("*") if path.is_file())
    for number, data in told["damaged"]:
        files[number % len(files)].write_bytes(data)
    with watched(folder), suppress(RmloraError):
        page = write_report(place, folder / "report")[0]
        parser = Page()
        parser.feed(page.read_text(encoding="utf-8"))
        parser.close()
