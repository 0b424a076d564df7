"""The command python -m sslpl.pretrain dataset=fashion_mnist backbone=small_cnn pretraining.epochs=100."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from sslpl.config import identity
from sslpl.config.build import read_dataset, with_fingerprints
from sslpl.config.plans import Plan, resolved_config
from sslpl.config.validation import check_groups, typed_config
from sslpl.data.images import place_images
from sslpl.pretrain.workflow import WEIGHTS, print_estimate, run_pretraining, start_pretraining
from sslpl.recording import lock
from sslpl.recording.folder import check_folder, make_folder
from sslpl.run.hydra_command import run_hydra_command
from sslpl.run.jobs import group_choices
from sslpl.runtime import Runtime

GROUPS = ("dataset", "backbone", "pretraining", "runtime")
TOP_KEYS = (*GROUPS, "seed")


def main() -> None:
    """Pre-trains a backbone; exit code 0 once the weights exist, 2 for bad input, 1 for a failure; see --help."""
    run_hydra_command("pretrain", plan_and_launch, TOP_KEYS)


def plan_and_launch(cfg: DictConfig) -> None:
    """Runs, resumes or reports the pretraining of a config."""
    launch_pretraining(plan_pretraining(cfg, group_choices(HydraConfig.get().runtime.choices)))


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
