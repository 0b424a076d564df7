"""Environment variables of W&B, and those among them that W&B cannot read."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

MODES = {"online": "online", "run": "online", "shared": "online", "offline": "offline", "dryrun": "offline"}
MODES |= {"disabled": "disabled"}
FALSE_VALUES = ("", "0", "false", "no", "off")


def environment_mode() -> str | None:
    """Returns online, offline or disabled as set by WANDB_DISABLED or WANDB_MODE; None if neither sets a known mode."""
    if os.environ.get("WANDB_DISABLED", "").strip().lower() not in FALSE_VALUES:
        return "disabled"
    return MODES.get(os.environ.get("WANDB_MODE", ""))


def unreadable_variables() -> dict[str, str]:
    """Returns an error for each variable with a value that W&B refuses; an empty one if the value is empty."""
    import wandb

    errors = {}
    for name, setting, allowed in (
        ("WANDB_MODE", "mode", "must be online, offline or disabled"),
        ("WANDB_BASE_URL", "base_url", "must be the address of a W&B server, such as https://api.wandb.ai"),
    ):
        if (value := os.environ.get(name)) is None:
            continue
        try:
            wandb.Settings.model_validate({setting: value})
        except Exception:  # pydantic's, or one of wandb's own
            errors[name] = f"{name}={value}: {allowed}" if value else ""
    return errors


@contextmanager
def without_variables(names: Iterable[str]) -> Iterator[None]:
    """Removes variables from the environment inside the context."""
    values = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(values)
