"""The command python -m sslpl.select query=NAME n=N POOL [KEY=VALUE ...] [--labeled FILE] [--output FILE]."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from numpy.typing import NDArray

from sslpl.arguments import nearest_name
from sslpl.csv_text import csv_text
from sslpl.files import write_whole
from sslpl.messages import exit_with_error
from sslpl.select.arrays import LABELED, SIZE_ARGUMENTS
from sslpl.select.named_strategies import parse_yaml
from sslpl.select.needed_arguments import NEEDED, MissingArguments
from sslpl.select.npz_files import LABELED_NAMES, POOL_NAMES, read_labeled, read_pool
from sslpl.select.selected_rows import SelectedRows, select, strategies
from sslpl.types import UserError

# Keys of the command line that set an argument of `select`.
KEYS = {name: name for name in ("n", "seed", "cycle", "cycles", "num_classes", "num_unlabeled")} | {
    "query": "strategy",
    "budget.candidates": "candidates",
}
OPTIONS = ("query/scorer", "query/selector")  # and query.KEY: `options` of `select`


def main() -> None:
    """Selects rows and writes their positions and scores as CSV; exit code 2 for bad input, 1 without memory."""
    options = parse_arguments()
    try:
        if options.list:
            print(strategy_table())
            return
        settings, pool = split_arguments(options.arguments)
        arrays = {} if pool is None else read_pool(pool)
        labeled = {} if options.labeled is None else read_labeled(options.labeled)
        paths = arrays.pop("paths", None)
        rows = select(**select_arguments(settings), **arrays, **labeled)
        write_rows(rows, paths, options.output)
    except MissingArguments as error:
        exit_with_error(missing_arrays(error))
    except UserError as error:
        exit_with_error(str(error))
    except MemoryError as error:
        exit_with_error(f"out of memory: {error}", 1)
    except KeyboardInterrupt:
        exit_with_error("interrupted", 130)


def parse_arguments() -> argparse.Namespace:
    """Parses the command line; settings, files and options may come in any order."""
    parser = argparse.ArgumentParser(
        prog="python -m sslpl.select",
        usage="%(prog)s query=NAME n=N POOL [KEY=VALUE ...] [--labeled FILE] [--output FILE]",
        description="Selects rows of arrays by a query strategy, without a run.",
        epilog=f"Keys: {', '.join([*KEYS, *OPTIONS])}, and query.OPTION for the options of a strategy.",
    )
    parser.add_argument(
        "arguments", nargs="*", metavar="ARGUMENT", help=f"KEY=VALUE, or an .npz file of {', '.join(POOL_NAMES)}"
    )
    parser.add_argument("--labeled", type=Path, metavar="FILE", help=f"an .npz file of {', '.join(LABELED_NAMES)}")
    parser.add_argument("--output", type=Path, metavar="FILE", help="a CSV file (default: standard output)")
    parser.add_argument("--list", action="store_true", help="list the strategies and the arguments that each needs")
    return parser.parse_intermixed_args()


def split_arguments(arguments: list[str]) -> tuple[dict[str, str], Path | None]:
    """Returns the settings by key, and the file of the pool if one is named; UserError for several files."""
    settings = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    files = [argument for argument in arguments if "=" not in argument]
    if len(files) > 1:
        raise UserError(f"{' '.join(files)}: must be one .npz file, that of the pool")
    return settings, Path(files[0]) if files else None


def select_arguments(settings: Mapping[str, str]) -> dict[str, Any]:
    """Returns the arguments of `select` that the settings stand for; UserError for an unknown or a missing key."""
    arguments: dict[str, Any] = {"options": {}}
    for key, text in settings.items():
        if key in KEYS:
            arguments[KEYS[key]] = text if key == "query" else parsed_value(key, text)
        elif key in OPTIONS or key.startswith("query."):
            option = key.removeprefix("query.").removeprefix("query/")
            arguments["options"][option] = text if key in OPTIONS else parsed_value(key, text)
        else:
            raise UserError(f"{key}={text}: no such key; {nearest_name(key, [*KEYS, *OPTIONS])}")
    for key in ("query", "n"):
        if key not in settings:
            raise UserError(f"{key}: must be given, as in query=badge n=100 pool.npz")
    return arguments


def parsed_value(key: str, text: str) -> Any:
    """Parses a number, true, false, null or a word; UserError for anything else."""
    try:
        return parse_yaml(text)
    except yaml.YAMLError:
        raise UserError(f"{key}={text}: must be a number, true, false, null or a word") from None


def missing_arrays(error: MissingArguments) -> str:
    """Says which arrays a strategy needs and where the command reads them."""
    labeled = [argument for argument in error.arguments if argument in LABELED]
    sizes = [argument for argument in error.arguments if argument in SIZE_ARGUMENTS]
    pool = [argument for argument in error.arguments if argument not in (*labeled, *sizes)]
    parts = [f"{' and '.join(map(array_text, pool))} in the pool's .npz file"] if pool else []
    parts += [f"{' and '.join(map(array_text, labeled))} in the file of --labeled"] if labeled else []
    parts += [f"{size}={NEEDED[size]}" for size in sizes]
    return f"{error.strategy} needs {', and '.join(parts)}"


def array_text(argument: str) -> str:
    """Returns an argument of `select` as a file contains it, with its shape."""
    if argument == "head":
        return " and ".join(f"{name} {NEEDED[name]}" for name in ("head_weight", "head_bias"))
    return f"{argument.removeprefix('labeled_')} {NEEDED[argument]}"


def write_rows(rows: SelectedRows, paths: NDArray[Any] | None, output: Path | None) -> None:
    """Writes a row per selection: position, score, and path if the pool has paths; UserError if it cannot."""
    header: tuple[str, ...] = ("position", "score")
    table: list[tuple[Any, ...]] = list(zip(*(column.tolist() for column in rows), strict=True))
    if paths is not None:
        header, table = (*header, "path"), [(*row, str(paths[row[0]])) for row in table]
    text = csv_text(header, table)
    if output is None:
        print(text, end="")
        return
    try:
        write_whole(output, text)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error.strerror or error})") from error
    print(f"{len(table):,} rows: {output}")


def strategy_table() -> str:
    """Returns a line per strategy: its name and the arguments that it needs."""
    found = strategies()
    width = max(map(len, found))
    return "\n".join(f"{name:<{width}}  {', '.join(needs)}" for name, needs in found.items())


if __name__ == "__main__":
    main()
