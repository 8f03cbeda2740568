"""The house has floors: a file imports from lower floors and from its own folder, nothing else."""

import ast
import sys
from pathlib import Path

import jaxgen

ROOT = Path(jaxgen.__file__).parent
FLOORS = {
    0: [
        "errors",
        "tree",
        "legend",
        "derivatives",
        "config",
        "config_experts",
        "config_checks",
        "config_groups",
        "config_media",
        "config_parts",
        "settings",
        "settings_yaml",
        "files",
        "buckets",
        "bucket_requests",
        "lazy",
        "host",
        "terminal",
        "eager",
        "pytree",
        "export",
        "html_page",
        "varying",
        "values",
        "arrays",
        "arguments",
    ],
    1: ["mesh"],
    2: ["ops"],
    3: ["nn"],
    4: ["models"],
    5: ["tokens", "data", "store", "decoding", "measure", "profile", "adapters", "privacy"],
    6: ["train", "pretrained", "safety"],
    7: ["text"],
    8: ["knowledge"],
    9: ["run"],
    10: ["verify", "plan", "serve", "harness", "tutor", "compress", "explain", "audit"],
    11: ["report"],
    12: ["examples"],
    13: ["cli"],
    14: ["__main__", "__init__"],
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(name: str) -> str | None:
    parts = name.split(".")
    if parts[0] != "jaxgen" or len(parts) == 1:
        return None
    return parts[1] if parts[1] in FLOOR else None


def files():
    return sorted(ROOT.rglob("*.py"))


def test_every_file_has_a_floor():
    for path in files():
        first = path.relative_to(ROOT).parts[0].removesuffix(".py")
        assert first in FLOOR, f"{path}: {first} stands on no floor"


def test_imports_never_go_up_or_sideways():
    for path in files():
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for name in imports(path):
            other = room(name)
            if other is None or other == own:
                continue
            # The ground is single files, which may lean on each other.
            ground = FLOOR[other] == FLOOR[own] == 0
            below = FLOOR[other] < FLOOR[own]
            assert below or ground, f"{path.relative_to(ROOT)} imports {name}: up or sideways"


def modules() -> dict[str, Path]:
    found = {}
    for path in files():
        parts = [ROOT.name, *path.relative_to(ROOT).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def test_no_modules_import_each_other_in_a_circle():
    """Imports inside functions count; names that a package hands on lazily do not."""
    known = modules()
    left = {
        name: {other for other in imports(path) & known.keys() if other != name}
        for name, path in known.items()
        if path.name != "__init__.py"
    }
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"in a circle, or above one: {sorted(left)}"


def test_only_nn_imports_linen():
    for path in files():
        if path.relative_to(ROOT).parts[0] != "nn":
            assert not [n for n in imports(path) if n.startswith("flax")], path


def test_nothing_dangerous_is_called():
    banned = {"eval", "exec", "compile", "__import__"}
    for path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in banned, f"{path}:{node.lineno}"
        # The parity gate alone runs the reference implementation, where a user has installed it.
        oracles = {"torch"} if path.name == "hub_parity.py" else set()
        assert not imports(path) & {"pickle", "torch", "tensorflow"} - oracles, path


def test_files_and_functions_stay_small():
    for path in files():
        text = path.read_text()
        parsed = ast.parse(text)
        explained = {n: _lines_of_docstring(n) for n in ast.walk(parsed)}
        assert len(text.splitlines()) - sum(explained.values()) <= 400, path
        for node in explained:
            if isinstance(node, ast.FunctionDef):
                size = node.end_lineno - node.lineno - explained[node]
                assert size < 60, f"{path}:{node.name}"


def _lines_of_docstring(node):
    """Lines of a docstring beyond the first; a well explained function is no longer for it."""
    known = isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module)
    if not known or ast.get_docstring(node) is None:
        return 0
    return node.body[0].end_lineno - node.body[0].lineno


def test_import_is_lazy_and_touches_no_device():
    import subprocess

    program = (
        "import sys, jaxgen; print(sorted({'jax', 'flax', 'numpy', 'grain'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
