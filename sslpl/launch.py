"""From a composed config to a finished run: check, name, build, run."""

import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from sslpl import checkpoint, identity
from sslpl.cycle import initial_state, run_active_learning
from sslpl.data.augment import Augmentation
from sslpl.data.images import placed
from sslpl.estimate import dry_run
from sslpl.files import write_whole
from sslpl.pool import Budget
from sslpl.progress import Progress, print_result
from sslpl.query.context import needs
from sslpl.recording import Interrupted, Recorder, read_status, write_json, write_status
from sslpl.runtime import Runtime, has_bfloat16, provenance
from sslpl.seeds import seeded
from sslpl.setup import Setup, Training
from sslpl.types import Dataset, RunInfo, Tracker, UserError
from sslpl.validate import check_config
from sslpl.views import aubc


def launch(
    cfg: DictConfig,
    choices: identity.Choices,
    composed: Callable[[list[str]], tuple[identity.Config, identity.Choices]],
) -> float | None:
    """Runs what a config describes, or goes on with it; returns the area under the budget curve, if one was run."""
    config = as_container(cfg)
    check_config(config)
    label = identity.label(config, choices, composed)
    folder = identity.folder(config, choices["dataset"], label)
    status = read_status(folder)
    if status.get("state") == "finished":
        print(f"finished already: {folder}")
        return float(status["aubc"])
    runtime: Runtime = instantiate(cfg.runtime)
    setup = build_setup(cfg, runtime.prepare(), runtime)
    runtime.set_threads(setup.dataset.train.shape)
    if runtime.dry_run:
        dry_run(setup, Console(), folder)
        return None
    origin, changes = resumed_provenance(folder, provenance(setup.device))
    run = RunInfo(identity.run_id(config), folder.name, label, folder, config, origin)
    open_folder(run)
    return execute(setup, run, instantiate(cfg.tracker), runtime, changes)


def as_container(cfg: DictConfig) -> dict[str, Any]:
    """A config as plain containers, its references resolved; UserError if one leads nowhere."""
    container: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    return {key: value for key, value in container.items() if key != "hydra"}


def build_setup(cfg: DictConfig, device: torch.device, runtime: Runtime) -> Setup:
    """Builds the parts of a run: the dataset on its device, the losses, the strategy, the budget in images."""
    training: Training = instantiate(cfg.training)
    dataset: Dataset = instantiate(cfg.dataset)
    budget: Budget = instantiate(cfg.budget).of(len(dataset.train))
    dataset = dataset._replace(train=placed(dataset.train, device), test=placed(dataset.test, device))
    augmentation = Augmentation(
        dataset.train.shape,
        dataset.mean,
        dataset.std,
        flip=dataset.flip,
        padding=dataset.padding,
        cutout=dataset.cutout,
        device=device,
    )
    backbone_of, module_of, seed = instantiate(cfg.backbone), instantiate(cfg.module), int(cfg.seed)

    def build(cycle: int) -> tuple[nn.Module, nn.Module | None]:
        classes, channels = len(dataset.class_names), dataset.train.shape[0]
        backbone = seeded(lambda: backbone_of(num_classes=classes, in_channels=channels), seed, f"backbone {cycle}")
        module = seeded(lambda: module_of(channels=backbone.channels), seed, f"module {cycle}")
        backbone.to(device, memory_format=torch.channels_last)
        if runtime.compile is True:
            backbone.compile(dynamic=False)
        return backbone, None if module is None else module.to(device)

    wanted, query = training.precision, instantiate(cfg.query)
    return Setup(
        dataset,
        build,
        augmentation,
        instantiate(cfg.ranking),
        instantiate(cfg.ssl),
        query,
        budget,
        training,
        seed,
        device,
        wanted == "bfloat16" or (wanted == "auto" and has_bfloat16(device)),
        needs=needs(query),
        captures=device.type == "cuda" and runtime.compile is not False and not runtime.deterministic,
    )


def resumed_provenance(folder: Path, now: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What a run's provenance becomes, and what differs from its start: a line each."""
    path = folder / "provenance.json"
    if not path.exists():
        return now, []
    first: dict[str, Any] = json.loads(path.read_text())
    changes = [
        f"this run began with {key} {first.get(key)}: it goes on with {now[key]}"
        for key in ("git", "device_name", "threads")
        if first.get(key) != now[key]
    ]
    return first | {"resumed": [*first.get("resumed", []), now]}, changes


def open_folder(run: RunInfo) -> None:
    """Makes a run's folder with its config and provenance; UserError if it cannot be written."""
    config = OmegaConf.to_yaml(OmegaConf.create(dict(run.config)))
    try:
        write_whole(run.folder / "config.yaml", config)
        for leftover in (run.folder / "error.log", *run.folder.rglob(".*.partial-*")):  # of an earlier life
            leftover.unlink(missing_ok=True)
        write_json(run.folder / "provenance.json", run.provenance)
    except OSError as error:
        where = run.config["runtime"]["output_dir"]
        raise UserError(f"runtime.output_dir={where}: cannot be written ({error.strerror or error})") from error


def execute(setup: Setup, run: RunInfo, tracker: Tracker, runtime: Runtime, changes: list[str]) -> float:
    """Runs the loop from its last checkpoint, if there is one, and leaves a status whatever happens."""
    console = Console()
    state = initial_state(setup)
    with Progress(runtime.progress, cycles=setup.budget.cycles, console=console) as progress:
        recorder = Recorder(run, setup, tracker, progress, runtime.checkpoint_minutes)
        saved, warning = checkpoint.load(run.folder / "checkpoint")
        for line in filter(None, [warning, resume_line(saved), *(changes if saved else [])]):
            progress.message(line)
        if saved is not None:
            state.load(saved)
        tracker.start(run)
        if state.history:  # a kill may have come between the checkpoint and the tables
            recorder.file(state)
        try:
            with recorder.signals():
                run_active_learning(setup, state, recorder)
        except (Interrupted, KeyboardInterrupt) as error:
            write_status(run.folder, "interrupted", cycle=state.cycle, phase=state.phase)
            tracker.finish(1, {}, [])
            raise error
        except Exception as error:
            line = " ".join(str(error).split()) or type(error).__name__
            write_whole(run.folder / "error.log", traceback.format_exc())
            write_status(run.folder, "failed", cycle=state.cycle, phase=state.phase, error=line)
            tracker.finish(1, {}, [])
            raise
    area = aubc(state.history)
    checkpoint.keep_weights(run.folder / "checkpoint", state.to_dict())
    write_status(run.folder, "finished", cycle=state.cycle - 1, phase="finished", aubc=area)
    final = {"aubc": area, "final_accuracy": float(state.history[-1]["test_accuracy"] or 0.0)}
    if runtime.progress != "none":
        print_result(console, state.history, run.folder, area)
    tracker.finish(0, final, [run.folder / "queries.csv"])
    return area


def resume_line(saved: dict[str, Any] | None) -> str | None:
    """Where an interrupted run goes on."""
    if saved is None:
        return None
    cycle, phase, epoch, step = saved["position"]
    return f"resumed at cycle {cycle + 1}, {phase}, epoch {epoch + 1}, step {step + 1}"
