"""Turns exceptions into one line and an exit code."""

import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from sslpl.arguments import nearest_name
from sslpl.config.validation import advice
from sslpl.files import CONF
from sslpl.recording.signals import Interrupted
from sslpl.run.finish import failure_message
from sslpl.run.outcome import RunFailed
from sslpl.run.overrides import explain_unplaced_key, sweep_without_m
from sslpl.types import InvalidLabels, UserError

T = TypeVar("T")
PLUGINS = {"hydra/sweeper=optuna": "hydra-optuna-sweeper"}  # options that another package adds to Hydra
BAD_INPUT, FAILED = 2, 1  # exit codes
SIGNAL_BASE = 128  # the exit code after a signal is this plus the signal's number


class ErrorReport(NamedTuple):
    """An error as one line, and the exit code for it."""

    line: str
    code: int
    details: tuple[str, ...] = ()  # further lines


class SweepStopped(BaseException):
    """A signal ended the whole sweep; not an Exception, because Hydra catches those of a job."""

    def __init__(self, report: ErrorReport) -> None:
        super().__init__(report.line)
        self.report = report


def stopped_by(signum: int, reason: str = "interrupted") -> SweepStopped:
    """Builds the exception that stops a command after a signal."""
    return SweepStopped(ErrorReport(f"{reason}; rerun the same command to resume", SIGNAL_BASE + signum))


def catch_errors(action: Callable[[], T], groups: Sequence[str] = ()) -> T | ErrorReport:
    """Returns what `action` returns, or a report of the error that it raised; raises SweepStopped after a signal.

    `groups` are the top-level keys that a message suggests, by default those of `python run.py`.
    """
    try:
        return action()
    except InvalidLabels as error:
        first, *details = error.args
        return ErrorReport(first, BAD_INPUT, tuple(details))
    except UserError as error:
        return error_report(str(error), BAD_INPUT)
    except InstantiationException as error:  # Hydra wraps what a constructor raised
        cause = error.__cause__ or error
        return error_report(str(cause), BAD_INPUT if isinstance(cause, UserError) else FAILED)
    except (HydraException, OmegaConfBaseException) as error:
        return error_report(composition_error(error, groups), BAD_INPUT)
    except Interrupted as error:
        raise stopped_by(error.signum, str(error)) from error
    except KeyboardInterrupt as error:
        raise stopped_by(signal.SIGINT) from error
    except RunFailed as error:
        return error_report(str(error), FAILED)
    except Exception as error:
        return error_report(failure_message(error), FAILED)


def error_report(text: str, code: int) -> ErrorReport:
    """Builds a report whose text is joined into one line."""
    return ErrorReport(" ".join(text.split()), code)


def print_error(result: T | ErrorReport) -> T | ErrorReport:
    """Prints a report to standard error; returns its argument, report or not."""
    if isinstance(result, ErrorReport):
        for line in (result.line, *result.details):
            print("sslpl:", line, file=sys.stderr, flush=True)
    return result


def composition_error(error: Exception, groups: Sequence[str] = ()) -> str:
    """Explains an error of Hydra or OmegaConf about an override or option, with the nearest known name."""
    message = str(error)
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        if (package := PLUGINS.get(f"{group}={option}")) is not None:
            return f"{group}={option}: is not installed; pip install {package}"
        return f"{group}={option}: no such option; {nearest_name(option, list(error.options))}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {message.splitlines()[0]}"
    if match := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.+)'", message):
        return sweep_without_m(match.group(1))
    if match := re.search(r"Could not override '([\w./@]+)'", message):
        key, shown = match.group(1), typed_argument(match.group(1))
        return (
            explain_unplaced_key(key, shown) or f"{shown}: no such key; {advice(key, known_keys(key, error, groups))}"
        )
    return message.split("\n")[0] + (f" ({full_key(message)})" if full_key(message) else "")


def typed_argument(key: str) -> str:
    """Returns the command-line argument that sets a key, as the user typed it."""
    return next((argument for argument in sys.argv[1:] if argument.lstrip("+~").startswith(f"{key}=")), key)


def full_key(message: str) -> str:
    """Extracts the full key that an error of OmegaConf names; empty if it names none."""
    match = re.search(r"full_key: (\S+)", message)
    return match.group(1) if match else ""


def known_keys(key: str, error: Exception, groups: Sequence[str] = ()) -> list[str]:
    """Returns the siblings of a misspelled key, or the top-level groups if the key has no dot."""
    parent = getattr(error.__cause__, "parent_node", None)
    if "." in key and parent is not None:
        return [str(name) for name in parent]
    return [*groups] or [path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra"] + ["seed"]
