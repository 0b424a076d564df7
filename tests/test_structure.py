"""The house stands: imports point down, no package cycle, targets name public faces."""

import ast
from collections import defaultdict
from pathlib import Path

import sslpl

ROOT = Path(sslpl.__file__).parents[1]
# From the ground up: a module imports its own package and those of lower floors alone.
FLOORS = (
    ("sslpl", "types", "seeds", "files", "csv_text", "memory"),
    ("fingerprints",),
    ("distributed", "class_balance", "ranking"),
    ("pool", "budget", "trimming", "training"),
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
    ("predict", "pretrain", "report"),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def room(module: str) -> str:
    """`sslpl.query.badge` -> query, `sslpl.loop` -> loop."""
    return [*module.split("."), "sslpl"][1] if module != "sslpl" else "sslpl"


def imports(path: Path) -> set[str]:
    """The modules of the project that a file imports, wherever in it."""
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
    """Which rooms import which, and the files that do."""
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
