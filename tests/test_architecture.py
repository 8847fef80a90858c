"""The building's own rules: who may import whom, how large a room may be, what no room may hold."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.layers import LAYERS, LIBRARY

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "rmlora"

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 40
LONG_FUNCTIONS = {
    "src/rmlora/cli.py:train": "Typer reads the options off the signature",
    "src/rmlora/commands/bench.py:bench": "Typer reads the options off the signature",
    "src/rmlora/run/arguments.py:training_arguments": "one line for each setting of the Trainer",
}
BANNED_WORDS = ("util", "helper", "manager")
PRINTS = ("cli", "analysis.present", "demo")
SEEDS = ("train", "heads", "mixture", "federated", "demo", "bench", "cli")
GLOBAL_SEEDS = ("torch.manual_seed", "torch.cuda.manual_seed_all", "torch.seed", "set_seed", "seed_everything")
PRIVATE_GENERATORS = ("random.Random", "np.random.default_rng", "np.random.Generator")
UNSAFE_MODULES = {"pickle", "dill", "joblib", "cloudpickle", "marshal"}


@cache
def parse(path: Path) -> ast.Module:
    """Read one source file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def sources(folder: Path = PACKAGE) -> list[Path]:
    """All Python files of a folder."""
    return sorted(folder.rglob("*.py"))


def module_of(path: Path) -> str:
    """`src/rmlora/analysis/gram.py` is `analysis.gram`; the package itself is the empty name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TESTS = sources(ROOT / "tests")
MODULES = {module_of(path): path for path in sources()}


def layer_of(module: str) -> str | None:
    """The row of LAYERS in which a module stands."""
    for name, layer in LAYERS.items():
        if any(module == own or (own and module.startswith(f"{own}.")) for own in layer.modules):
            return name
    return None


def statements(tree: ast.Module, lazy: bool) -> Iterator[ast.stmt]:
    """Import statements; without `lazy` only those that run on import. What is for type checkers does not run."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        skipped = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        skipped |= isinstance(node, (ast.FunctionDef, ast.Try)) and not lazy
        if not skipped:
            waiting.extend(ast.iter_child_nodes(node))


def imported(path: Path, lazy: bool = True) -> Iterator[str]:
    """Full names of the modules a file imports: `rmlora.pairs`, `torch.nn`."""
    for node in statements(parse(path), lazy):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively; write the full name"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full.removeprefix("rmlora.") in MODULES else str(node.module)


def own_imports(module: str) -> set[str]:
    """Modules of rmlora that a module of rmlora imports."""
    names = {name for name in imported(MODULES[module]) if name.split(".")[0] == "rmlora"}
    return {name.removeprefix("rmlora").removeprefix(".") for name in names}


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions and methods of a file."""
    for node in ast.walk(parse(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Calls with the dotted name of what is called."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def shown(path: Path) -> str:
    """A path as a reader of the repository knows it."""
    return path.relative_to(ROOT).as_posix()


def test_every_module_stands_in_a_layer() -> None:
    assert not [module for module in MODULES if layer_of(module) is None]


def test_imports_point_one_way() -> None:
    wrong = []
    for module in MODULES:
        layer = layer_of(module)
        for other in own_imports(module):
            below = layer_of(other)
            if below != layer and below not in LAYERS[layer].sees:
                wrong.append(f"{module} ({layer}) imports {other} ({below})")
    assert not wrong


def test_imports_make_no_circle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for other in own_imports(module) & MODULES.keys():
                visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_every_layer_lies_above_what_it_sees() -> None:
    order = list(LAYERS)
    for name, layer in LAYERS.items():
        assert all(order.index(below) < order.index(name) for below in layer.sees), name


def test_the_library_needs_torch_and_peft_alone() -> None:
    allowed = sys.stdlib_module_names | {"rmlora", "torch", "peft", "safetensors"}
    wrong = []
    for module, path in MODULES.items():
        if layer_of(module) in (*LIBRARY, "package"):
            needed = {name.split(".")[0] for name in imported(path, lazy=False)} - allowed
            optional = {name.split(".")[0] for name in imported(path)} - allowed - {"transformers"}
            wrong += [f"{module} imports {name}" for name in needed | optional]
    assert not wrong


def test_files_stay_small() -> None:
    lengths = {shown(path): len(path.read_text(encoding="utf-8").splitlines()) for path in sources() + TESTS}
    assert not {path: lines for path, lines in lengths.items() if lines > MAX_FILE_LINES}


def test_functions_stay_small() -> None:
    lengths = {}
    for path in sources() + TESTS:
        for function in functions(path):
            docstring = function.body[0] if ast.get_docstring(function) else None
            inside = docstring.end_lineno - docstring.lineno + 1 if docstring else 0
            lengths[f"{shown(path)}:{function.name}"] = function.end_lineno - function.lineno + 1 - inside
    too_long = {name for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES}
    assert too_long == LONG_FUNCTIONS.keys()


def test_nothing_is_named_after_no_idea() -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = {shown(path): path.stem for path in sources() + TESTS}
    for path in sources() + TESTS:
        defined = [node.name for node in ast.walk(parse(path)) if isinstance(node, kinds)]
        names |= {f"{shown(path)}:{name}": name for name in defined if not name.startswith("test_")}
    assert not [where for where, name in names.items() if any(word in name.lower() for word in BANNED_WORDS)]


def test_only_the_front_prints() -> None:
    assert not [
        f"{shown(path)}:{call.lineno}"
        for path in sources()
        if not module_of(path).startswith(PRINTS)
        for name, call in calls(path)
        if name == "print"
    ]


def test_no_foreign_pickle_is_opened() -> None:
    wrong = []
    for path in sources():
        modules = {name.split(".")[0] for name in imported(path)}
        wrong += [f"{shown(path)} imports {name}" for name in modules & UNSAFE_MODULES]
        for name, call in calls(path):
            if name == "torch.load" or _given(call, "allow_pickle", True):
                wrong.append(f"{shown(path)}:{call.lineno}")
    assert not wrong


def test_global_generators_are_left_alone() -> None:
    wrong = []
    for path in sources():
        if layer_of(module_of(path)) not in SEEDS:
            for name, call in calls(path):
                is_global = name.startswith(("random.", "np.random.")) and name not in PRIVATE_GENERATORS
                if (name in GLOBAL_SEEDS or is_global) and not name.startswith("random.Random("):
                    wrong.append(f"{shown(path)}:{call.lineno} {name}")
    assert not wrong


def test_foreign_code_never_runs_by_default() -> None:
    wrong = []
    for path in sources():
        wrong += [f"{shown(path)}:{call.lineno}" for _, call in calls(path) if _given(call, "trust_remote_code", True)]
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "trust_remote_code":
                wrong += [] if "default=False" in ast.unparse(node) else [f"{shown(path)}:{node.lineno}"]
        for function in functions(path):
            if ("trust_remote_code", "True") in _defaults(function):
                wrong.append(f"{shown(path)}:{function.name}")
    assert not wrong


def test_every_method_has_a_file_and_a_card() -> None:
    from rmlora.methods import METHODS

    for row in METHODS.values():
        assert (ROOT / "docs" / "methods" / f"{row.name}.md").is_file(), f"no card for {row.name}"
        file = PACKAGE / "methods" / f"{row.name.replace('-', '_')}.py"
        assert row.trains_base or file.is_file(), f"no {file.name}"


def _given(call: ast.Call, keyword: str, value: object) -> bool:
    return any(k.arg == keyword and isinstance(k.value, ast.Constant) and k.value.value is value for k in call.keywords)


def _defaults(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[tuple[str, str]]:
    given = function.args
    ordered = list(zip(reversed(given.args), reversed(given.defaults), strict=False))
    named = list(zip(given.kwonlyargs, given.kw_defaults, strict=True))
    return [(argument.arg, ast.unparse(default)) for argument, default in ordered + named if default is not None]
