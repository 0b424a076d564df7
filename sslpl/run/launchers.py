"""Sweeps whose runs go to other processes: planned here, handed to a launcher of Hydra's, and told of at the end."""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from hydra.utils import get_class
from joblib import cpu_count
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from sslpl.config.plans import Plan
from sslpl.recording import lock
from sslpl.recording.status import read_status
from sslpl.run.errors import FAILED, SIGNALLED, ErrorReport, SweepStopped, catch_errors, error_report, print_error
from sslpl.run.gpus import concurrent_runs
from sslpl.run.jobs import Command, Job, describe_owner, job_plan
from sslpl.run.launch import finished_outcome
from sslpl.run.monitor import monitored
from sslpl.run.outcome import Outcome
from sslpl.run.worker import JobEnd, SweepCommand, run_sweep_job
from sslpl.runtime import threads_per_job
from sslpl.types import UserError

LOST_JOB = ErrorReport("no end was seen; the same command goes on", FAILED)
LOCAL_CLUSTER_OPTIONS = (
    "num_cpus",
    "num_gpus",
    "object_store_memory",
    "include_dashboard",
)  # of a cluster of Ray's own


class LauncherConfig(NamedTuple):
    """What Hydra and the launcher's file say of a sweep."""

    plugin: str
    options: dict[str, Any]
    context: HydraContext
    config: DictConfig

    @property
    def launcher(self) -> str:
        """What the user calls the launcher."""
        return str(self.config.hydra.runtime.choices["hydra/launcher"])


def launch_sweep(
    sweep: LauncherConfig, command: Command, overrides: Sequence[Sequence[str]], first: int
) -> list[JobReturn]:
    """Finishes every run of a sweep; Hydra's sweeper gets the area under the budget curve of each, or None."""
    command.refuse_sweep()
    plugin = launcher_class(sweep)
    plans = [print_error(plan_job(sweep, command, each, first + place)) for place, each in enumerate(overrides)]
    ends: dict[int, JobEnd] = {place: plan for place, plan in enumerate(plans) if isinstance(plan, ErrorReport)}
    areas = []
    try:
        while todo := unfinished_plans(plans, ends):
            found, signum = run_with_launcher(plugin, sweep, todo, {place: overrides[place] for place in todo}, first)
            ends |= found
            if signum is not None:
                raise SweepStopped(ErrorReport("interrupted; the same command goes on", SIGNALLED + signum))
    finally:
        for place, plan in enumerate(plans):
            name = " ".join(overrides[place]) if isinstance(plan, ErrorReport) else str(plan.folder)
            areas.append(command.add(Job(name, ends.get(place, LOST_JOB))))
    pairs = zip(overrides, areas, strict=True)
    return [JobReturn(overrides=each, status=JobStatus.COMPLETED, _return_value=area) for each, area in pairs]


def launcher_class(sweep: LauncherConfig) -> type[Launcher]:
    """The launcher of Hydra's; UserError if it is not installed."""
    try:
        plugin: type[Launcher] = get_class(sweep.plugin)
    except Exception as error:
        install = "pip install 'sslpl[launchers]'"
        raise UserError(f"hydra/launcher={sweep.launcher}: cannot be imported; {install} ({error})") from error
    return plugin


def plan_job(sweep: LauncherConfig, command: Command, overrides: Sequence[str], number: int) -> Plan | ErrorReport:
    """Which run the overrides of a job are."""
    cfg = sweep.context.config_loader.load_sweep_config(sweep.config, list(overrides))
    before = HydraConfig.instance().cfg
    with read_write(cfg.hydra), open_dict(cfg.hydra):
        cfg.hydra.job.num = number
    HydraConfig.instance().set_config(cfg)
    task_cfg = cfg.copy()
    with read_write(task_cfg), open_dict(task_cfg):
        del task_cfg["hydra"]
    try:
        return job_plan(task_cfg, HydraConfig.get(), command.presets)
    finally:
        HydraConfig.instance().cfg = before


def unfinished_plans(plans: Sequence[Plan | ErrorReport], ends: dict[int, JobEnd]) -> dict[int, Plan]:
    """The plans, by their place, that are not finished; notes those that are, waits for those of other commands."""
    for place, plan in enumerate(plans):
        if isinstance(plan, ErrorReport) or (place in ends and ends[place] != Outcome("elsewhere")):
            continue
        if ends.pop(place, None) is not None:
            wait_for_owner(plan)
        if (end := print_error(catch_errors(partial(finished_outcome, plan)))) is not None:
            ends[place] = end
    return {place: plan for place, plan in enumerate(plans) if isinstance(plan, Plan) and place not in ends}


def wait_for_owner(plan: Plan) -> None:
    """Waits until no process has a run's folder."""
    print(f"waiting for {describe_owner(plan)}, which is running {plan.folder}", flush=True)
    with lock.run_lock(plan.folder, wait=True):
        pass


def run_with_launcher(
    plugin: type[Launcher],
    sweep: LauncherConfig,
    todo: dict[int, Plan],
    overrides: dict[int, Sequence[str]],
    first: int,
) -> tuple[dict[int, JobEnd], int | None]:
    """What became of each plan, by its place, in the hands of the launcher; and the signal that stopped them."""
    plans, runtime = list(todo.values()), sweep.config.runtime
    gpus = torch.cuda.device_count() if runtime.device in ("auto", "cuda") else 0
    asked = sweep.options.get("n_jobs")
    jobs = min(concurrent_runs(asked, gpus, runtime.jobs_per_gpu, cpu_count()), len(plans))
    with monitored(plans, sweep.launcher) as stop:
        launcher = plugin(**launcher_options(sweep.launcher, sweep.options, jobs, gpus))
        task = partial(run_sweep_job, SweepCommand(tuple(sys.argv), os.getpid(), sweep.launcher, str(stop.flag)))
        launcher.setup(hydra_context=sweep.context, task_function=task, config=without_sweep_folder(sweep.config))
        if sweep.launcher == "submitit_local":  # which would start all at once
            with ThreadPoolExecutor(jobs) as pool:
                batches = pool.map(lambda each: launcher_results(launcher, [each], first), overrides.values())
                found = [end for batch in batches for end in batch]
        else:
            found = launcher_results(launcher, list(overrides.values()), first)
    ends = {place: job_end(each, todo[place]) for place, each in zip(todo, found, strict=True)}
    once = {id(each): end for each, end in zip(found, ends.values(), strict=True)}  # an error may be that of many
    for end in once.values():
        if not isinstance(end, ErrorReport) or end.code < SIGNALLED:
            print_error(end)
    return ends, stop.signum


def launcher_results(launcher: Launcher, overrides: list[Sequence[str]], first: int) -> list[Any]:
    """What the tasks of some jobs returned, or the exception that ended the launcher, for each."""
    try:
        results = launcher.launch(overrides, initial_job_idx=first)
        return [result._return_value for result in results]  # the public one raises, after a line of its own
    except Exception as error:
        return [error] * len(overrides)


def job_end(result: JobEnd | Exception, plan: Plan) -> JobEnd:
    """The end of a job; where its process was lost, what its folder says."""
    if isinstance(result, Outcome | ErrorReport):
        return result
    status = read_status(plan.folder)
    if status.get("state") == "finished":
        return Outcome("finished", float(status["aubc"]))
    if status.get("state") == "failed":
        return error_report(str(status.get("error")), FAILED)
    said = " ".join(str(result).splitlines()[:2]).split(". ")[0].rstrip(".")
    return error_report(f"{type(result).__name__}: {said[:300]}; the same command goes on from what was saved", FAILED)


def launcher_options(launcher: str, options: dict[str, Any], jobs: int, gpus: int) -> dict[str, Any]:
    """The options as the launcher's plugin takes them, with what was left to this machine filled in."""
    options = dict(options)
    if launcher == "joblib":  # which gives each process its share of the cores itself, as Ray and Slurm do
        options["n_jobs"] = jobs
    if launcher == "submitit_local":
        options.pop("n_jobs")
        options["gpus_per_node"] = options["gpus_per_node"] or gpus
        os.environ.setdefault("OMP_NUM_THREADS", str(threads_per_job(jobs, cpu_count())))
    if launcher == "ray":
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # or it holds lines back that differ in their numbers alone
        init = {key: value for key, value in options["ray"]["init"].items() if value is not None}
        if "address" in init or "RAY_ADDRESS" in os.environ:
            init = {key: value for key, value in init.items() if key not in LOCAL_CLUSTER_OPTIONS} | {
                "object_store_memory": None
            }
        options["ray"] = OmegaConf.create({"init": init, "remote": options["ray"]["remote"]})
    return options


def without_sweep_folder(config: DictConfig) -> DictConfig:
    """The config for the processes of a sweep: Hydra makes no folder there either."""
    config = config.copy()
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.overrides.hydra.append("hydra.sweep.dir=.")
    return config
