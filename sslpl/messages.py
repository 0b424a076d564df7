"""What a command says beside its output: notices and errors, one line each on standard error."""

import sys
from typing import NoReturn


def print_notice(line: str) -> None:
    """Prints a line on standard error."""
    print(f"sslpl: {line}", file=sys.stderr, flush=True)


def exit_with_error(line: str, code: int = 2) -> NoReturn:
    """Prints an error line on standard error and exits; the default code stands for bad input."""
    print_notice(line)
    sys.exit(code)
