"""The command python -m sslpl.pretrain dataset=fashion_mnist backbone=small_cnn pretraining.epochs=100."""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from sslpl.config import identity
from sslpl.config.build import read_dataset, with_fingerprints
from sslpl.config.plans import Plan, resolved_config
from sslpl.config.validation import check_groups, typed_config
from sslpl.data.images import place_images
from sslpl.files import CONF
from sslpl.pretrain.workflow import WEIGHTS, print_estimate, run_pretraining, start_pretraining
from sslpl.recording import lock
from sslpl.recording.folder import check_folder, make_folder
from sslpl.run.errors import ErrorReport, SweepStopped, catch_errors, print_error
from sslpl.run.jobs import group_choices
from sslpl.runtime import Runtime

GROUPS = ("dataset", "backbone", "pretraining", "runtime")
TOP_KEYS = (*GROUPS, "seed")


def main() -> None:
    """Pre-trains a backbone; exit code 0 once the weights exist, 2 for bad input, 1 for a failure; see --help."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let every exception reach `catch_errors`
    results: list[Any] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="pretrain")
    def run(cfg: DictConfig) -> None:
        os.chdir(HydraConfig.get().runtime.cwd)  # the output folder does not move with hydra.job.chdir
        choices = group_choices(HydraConfig.get().runtime.choices)
        results.append(print_error(catch_errors(lambda: launch_pretraining(plan_pretraining(cfg, choices)), TOP_KEYS)))

    with TemporaryDirectory(prefix="sslpl-") as scratch:  # Hydra always writes the config of a multirun
        os.environ["SSLPL_SCRATCH"] = scratch
        try:
            results.append(print_error(catch_errors(run, TOP_KEYS)))
        except SweepStopped as stop:
            results.append(print_error(stop.report))
    sys.exit(max((result.code for result in results if isinstance(result, ErrorReport)), default=0))


def plan_pretraining(cfg: DictConfig, choices: identity.Choices) -> Plan:
    """Validates a config and returns the plan with the folder of its weights; UserError for the first mistake."""
    config = resolved_config(cfg)
    check_groups(config, GROUPS)
    config = with_fingerprints(typed_config(config))
    parent = Path(config["runtime"]["output_dir"]) / choices["dataset"] / "pretraining"
    return Plan(config, choices, "simclr", parent / f"{choices['backbone']}-simclr-{identity.run_id(config)}")


def launch_pretraining(plan: Plan, wait: bool = False) -> None:
    """Runs or resumes the pre-training of a plan; waits if another process is already running it."""
    if weights_exist(plan):
        return
    runtime: Runtime = instantiate(plan.config["runtime"])
    device = runtime.prepare()
    dataset = read_dataset(plan.config["dataset"], plan.config["seed"])
    dataset = dataset._replace(train=place_images(dataset.train, device), test=place_images(dataset.test, device))
    runtime.set_threads(dataset.train.shape)
    task, state = start_pretraining(plan.config, dataset, device)
    if runtime.dry_run:
        print_estimate(task, state, plan.folder)
        return
    make_folder(plan.folder, runtime.output_dir)
    with lock.run_lock(plan.folder, wait) as acquired:
        if acquired and not weights_exist(plan):
            run_pretraining(plan, runtime, dataset, task, state)
            print(usage_line(plan), flush=True)
    if not acquired:
        print(f"waiting for another process, which is at {plan.folder}", flush=True)
        launch_pretraining(plan, wait=True)


def weights_exist(plan: Plan) -> bool:
    """Returns True, and prints where they are, if the weights exist; UserError if the folder belongs to another run."""
    if not plan.folder.exists():
        return False
    check_folder(plan.folder, plan.config)
    if not (plan.folder / WEIGHTS).exists():
        return False
    lock.remove_lock(plan.folder)
    print(f"finished already: {plan.folder}\n{usage_line(plan)}", flush=True)
    return True


def usage_line(plan: Plan) -> str:
    """Returns a line with the command that starts a run from the weights."""
    dataset, backbone = plan.choices["dataset"], plan.choices["backbone"]
    return f"use it: python run.py dataset={dataset} backbone={backbone} backbone.weights={plan.folder / WEIGHTS}"


if __name__ == "__main__":
    main()
