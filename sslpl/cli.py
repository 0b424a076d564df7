"""The command line: composes the config, runs it, and turns every mistake into one line and an exit code."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import hydra
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sslpl.types import UserError
from sslpl.validate import nearest

T = TypeVar("T")
CONF = next(path for path in (Path(__file__).parent / "conf", Path(__file__).parents[1] / "conf") if path.exists())
BAD_INPUT, FAILED = 2, 1


def main() -> None:
    """`python run.py` and `sslpl`: exit code 0 when all runs finished, 2 for bad input, 1 for a failed run."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let every exception reach the one place below
    codes: list[int] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def run(cfg: DictConfig) -> float | None:
        area, code = guarded(lambda: run_composed(cfg))
        codes.append(code)
        return area

    with TemporaryDirectory(prefix="sslpl-") as scratch:  # Hydra writes a multirun's config, wanted or not
        os.environ["SSLPL_SCRATCH"] = scratch
        _, code = guarded(run)
    sys.exit(max([code, *codes], default=0))


def run_composed(cfg: DictConfig) -> float | None:
    """Runs one composed config."""
    from sslpl.launch import launch  # after composing: a misspelled word needs no torch

    return launch(cfg, group_choices(HydraConfig.get().runtime.choices), composed)


def group_choices(choices: Any) -> dict[str, str]:
    """The option chosen in each group, without Hydra's own."""
    return {str(key): str(value) for key, value in choices.items() if not str(key).startswith("hydra")}


def composed(overrides: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The config that a list of overrides gives, and the option that it has in each group."""
    cfg = compose("config", overrides=overrides, return_hydra_config=True)
    choices = group_choices(cfg.hydra.runtime.choices)
    with open_dict(cfg):
        del cfg["hydra"]
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return config, choices


def guarded(action: Callable[[], T]) -> tuple[T | None, int]:
    """What `action` returns and exit code 0, or None and the code of what went wrong, told in one line."""
    from sslpl.recording import Interrupted

    try:
        return action(), 0
    except UserError as error:
        return None, complain(str(error), BAD_INPUT)
    except InstantiationException as error:  # Hydra's wrapping of what a constructor raised
        cause = error.__cause__ or error
        return None, complain(str(cause), BAD_INPUT if isinstance(cause, UserError) else FAILED)
    except (HydraException, OmegaConfBaseException) as error:
        return None, complain(composition_mistake(error), BAD_INPUT)
    except Interrupted as error:
        sys.exit(complain(f"{error}; the same command goes on", 128 + error.signum))
    except KeyboardInterrupt:
        sys.exit(complain("interrupted; the same command goes on", 130))
    except Exception as error:
        return None, complain(f"{type(error).__name__}: {error}", FAILED)


def complain(line: str, code: int) -> int:
    """Prints one line to standard error and returns the exit code."""
    print("sslpl: " + " ".join(line.split()), file=sys.stderr)
    return code


def composition_mistake(error: Exception) -> str:
    """What is wrong with an override or an option, with the nearest known name."""
    message = str(error)
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={option}: no such option; {nearest(option, list(error.options))}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {message.splitlines()[0]}"
    if found := re.search(r"Could not override '([\w./@]+)'", message):
        key = found.group(1)
        return f"{given(key)}: no such key; {nearest(key.rpartition('.')[2], known_beside(key, error))}"
    return message.split("\n")[0] + (f" ({given_key(message)})" if given_key(message) else "")


def given(key: str) -> str:
    """The argument as the user typed it."""
    return next((argument for argument in sys.argv[1:] if argument.lstrip("+~").startswith(f"{key}=")), key)


def given_key(message: str) -> str:
    """The full key that a config error names."""
    found = re.search(r"full_key: (\S+)", message)
    return found.group(1) if found else ""


def known_beside(key: str, error: Exception) -> list[str]:
    """The keys that stand where a misspelled one was looked for; the groups for a word without a dot."""
    parent = getattr(error.__cause__, "parent_node", None)
    if "." in key and parent is not None:
        return [str(name) for name in parent]
    return [path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra"] + ["seed"]
