"""Every mistake becomes one line and an exit code."""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from sslpl.config.validation import advice, nearest_name
from sslpl.recording.signals import Interrupted
from sslpl.run.finish import failure_message
from sslpl.run.outcome import RunFailed
from sslpl.run.overrides import explain_unplaced_key, sweep_without_m
from sslpl.types import InvalidLabels, UserError

T = TypeVar("T")
CONF = next(path for path in (Path(__file__).parents[1] / "conf", Path(__file__).parents[2] / "conf") if path.exists())
PLUGINS = {"hydra/sweeper=optuna": "hydra-optuna-sweeper"}  # options of Hydra's that a package brings
BAD_INPUT, FAILED, SIGNALLED = 2, 1, 128  # exit codes; the last plus the number of the signal


class ErrorReport(NamedTuple):
    """What went wrong, in one line, and the exit code for it."""

    line: str
    code: int
    more: tuple[str, ...] = ()  # lines beside it


class SweepStopped(BaseException):
    """A signal ended the whole sweep; no Exception, because Hydra catches those of a job."""

    def __init__(self, mistake: ErrorReport) -> None:
        super().__init__(mistake.line)
        self.mistake = mistake


def catch_errors(action: Callable[[], T], words: Sequence[str] = ()) -> T | ErrorReport:
    """What `action` returns, or what went wrong; Stopped after a signal.

    `words` are what a command knows without a dot, if not the groups of `python run.py`.
    """
    try:
        return action()
    except InvalidLabels as error:
        first, *more = error.args
        return ErrorReport(first, BAD_INPUT, tuple(more))
    except UserError as error:
        return error_report(str(error), BAD_INPUT)
    except InstantiationException as error:  # Hydra's wrapping of what a constructor raised
        cause = error.__cause__ or error
        return error_report(str(cause), BAD_INPUT if isinstance(cause, UserError) else FAILED)
    except (HydraException, OmegaConfBaseException) as error:
        return error_report(composition_error(error, words), BAD_INPUT)
    except Interrupted as error:
        raise SweepStopped(error_report(f"{error}; the same command goes on", SIGNALLED + error.signum)) from error
    except KeyboardInterrupt as error:
        raise SweepStopped(error_report("interrupted; the same command goes on", 130)) from error
    except RunFailed as error:
        return error_report(str(error), FAILED)
    except Exception as error:
        return error_report(failure_message(error), FAILED)


def error_report(text: str, code: int) -> ErrorReport:
    """A mistake whose text is brought into one line."""
    return ErrorReport(" ".join(text.split()), code)


def print_error(end: T | ErrorReport) -> T | ErrorReport:
    """The same, after a mistake has been printed to standard error."""
    if isinstance(end, ErrorReport):
        for line in (end.line, *end.more):
            print("sslpl:", line, file=sys.stderr, flush=True)
    return end


def composition_error(error: Exception, words: Sequence[str] = ()) -> str:
    """What is wrong with an override or an option, with the nearest known name."""
    message = str(error)
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        if (package := PLUGINS.get(f"{group}={option}")) is not None:
            return f"{group}={option}: is not installed; pip install {package}"
        return f"{group}={option}: no such option; {nearest_name(option, list(error.options))}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {message.splitlines()[0]}"
    if found := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.+)'", message):
        return sweep_without_m(found.group(1))
    if found := re.search(r"Could not override '([\w./@]+)'", message):
        key, shown = found.group(1), typed_argument(found.group(1))
        return explain_unplaced_key(key, shown) or f"{shown}: no such key; {advice(key, known_keys(key, error, words))}"
    return message.split("\n")[0] + (f" ({full_key(message)})" if full_key(message) else "")


def typed_argument(key: str) -> str:
    """The argument as the user typed it."""
    return next((argument for argument in sys.argv[1:] if argument.lstrip("+~").startswith(f"{key}=")), key)


def full_key(message: str) -> str:
    """The full key that a config error names."""
    found = re.search(r"full_key: (\S+)", message)
    return found.group(1) if found else ""


def known_keys(key: str, error: Exception, words: Sequence[str] = ()) -> list[str]:
    """The keys that stand where a misspelled one was looked for; the groups for a word without a dot."""
    parent = getattr(error.__cause__, "parent_node", None)
    if "." in key and parent is not None:
        return [str(name) for name in parent]
    return [*words] or [path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra"] + ["seed"]
