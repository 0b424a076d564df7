"""What the environment tells W&B, and which of it W&B could not read."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

MODES = {"online": "online", "run": "online", "shared": "online", "offline": "offline", "dryrun": "offline"}
MODES |= {"disabled": "disabled"}
NO = ("", "0", "false", "no", "off")


def environment_mode() -> str | None:
    """Returns online, offline or disabled as WANDB_DISABLED or WANDB_MODE say; None if they say nothing that counts."""
    if os.environ.get("WANDB_DISABLED", "").strip().lower() not in NO:
        return "disabled"
    return MODES.get(os.environ.get("WANDB_MODE", ""))


def unreadable_variables() -> dict[str, str]:
    """Returns the variables with a value that W&B refuses, and what is wrong with each (nothing with an empty one)."""
    import wandb

    found = {}
    for name, setting, allowed in (
        ("WANDB_MODE", "mode", "must be online, offline or disabled"),
        ("WANDB_BASE_URL", "base_url", "must be the address of a W&B server, such as https://api.wandb.ai"),
    ):
        if (value := os.environ.get(name)) is None:
            continue
        try:
            wandb.Settings.model_validate({setting: value})
        except Exception:  # of pydantic, or wandb's own
            found[name] = f"{name}={value}: {allowed}" if value else ""
    return found


@contextmanager
def hidden(names: Iterable[str]) -> Iterator[None]:
    """Takes variables out of the environment for a while."""
    kept = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(kept)
