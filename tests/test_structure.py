"""The structure of the package: imports point down, targets name public functions, names have one meaning."""

import ast
import importlib
import re
from collections import defaultdict
from pathlib import Path

import sslpl

ROOT = Path(sslpl.__file__).parents[1]
# From the ground up: a module imports its own package and those of lower floors alone.
FLOORS = (
    (
        "sslpl",
        "types",
        "seeds",
        "files",
        "csv_text",
        "memory",
        "messages",
        "lbfgs",
        "softmax_regression",
        "process_state",
    ),
    ("fingerprints", "arguments", "turns"),
    ("distributed", "class_balance", "ranking", "calibration"),
    ("pool", "budget", "trimming", "training", "forecast", "stopping"),
    ("schedule",),
    ("data", "models", "clustering", "ssl"),
    ("query", "oracle"),
    ("runtime", "provenance"),
    ("setup", "state"),
    ("learn",),
    ("phases",),
    ("loop",),
    ("config",),
    ("tracking",),
    ("recording",),
    ("run",),
    ("embed", "predict", "pretrain", "report", "select"),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def room(module: str) -> str:
    """Returns the package or top-level module: query for `sslpl.query.badge`, loop for `sslpl.loop`."""
    return [*module.split("."), "sslpl"][1] if module != "sslpl" else "sslpl"


def imports(path: Path) -> set[str]:
    """Returns the modules of the project that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sslpl":
            below = [f"{node.module}.{name.name}" for name in node.names]
            names = {name for name in below if is_module(name)}
            found |= names or {node.module}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.split(".")[0] == "sslpl"}
    return found


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def arrows() -> dict[tuple[str, str], list[str]]:
    """Returns the files of each import from one package to another."""
    found = defaultdict(list)
    for path in sorted((ROOT / "sslpl").rglob("*.py")):
        here = room(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
        for module in imports(path):
            if room(module) != here:
                found[here, room(module)].append(str(path.relative_to(ROOT)))
    return found


def test_every_import_points_down() -> None:
    wrong = {arrow: files for arrow, files in arrows().items() if FLOOR[arrow[1]] >= FLOOR[arrow[0]]}
    assert not wrong


def test_every_room_has_a_floor() -> None:
    rooms = {room(f"sslpl.{path.stem}") for path in (ROOT / "sslpl").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__init__", "__pycache__"} == set(FLOOR) - {"sslpl"}


def test_every_target_is_a_public_face() -> None:
    files = [*(ROOT / "conf").rglob("*.yaml")]
    targets = {found for path in files for found in re.findall(r"_target_: (sslpl\.\S+)", path.read_text())}
    assert len(targets) > 50
    for target in targets:
        module, _, name = target.rpartition(".")
        assert module.count(".") == 1, f"{target} names a file inside of a package"
        assert callable(getattr(importlib.import_module(module), name))


def test_public_names_have_one_meaning() -> None:
    homes = defaultdict(list)
    for path in (ROOT / "sslpl").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(str(path.relative_to(ROOT)))
    commands = {"main", "fail", "parse_arguments"}  # each command has its own
    assert {name: files for name, files in homes.items() if len(files) > 1 and name not in commands} == {}
