"""Plans the runs of a sweep, executes them by a launcher, and collects their results."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
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
from sslpl.run.errors import FAILED, SIGNAL_BASE, ErrorReport, catch_errors, error_report, print_error, stopped_by
from sslpl.run.gpus import concurrent_runs
from sslpl.run.interleaved import run_interleaved, runs_at_once
from sslpl.run.jobs import Command, Job, JobResult, job_plan, print_waiting
from sslpl.run.launch import finished_outcome
from sslpl.run.monitor import monitored
from sslpl.run.outcome import Outcome
from sslpl.run.worker import SweepCommand, run_sweep_job
from sslpl.runtime import threads_per_job
from sslpl.types import UserError

LOST_JOB = ErrorReport("the job returned no result; rerun the same command to resume", FAILED)
Executor = Callable[[Mapping[int, Plan]], tuple[dict[int, JobResult], int | None]]  # see `run_with_launcher`
# Options with which Ray starts a local cluster; it refuses them for an existing one.
LOCAL_CLUSTER_OPTIONS = ("num_cpus", "num_gpus", "object_store_memory", "include_dashboard")


class LauncherConfig(NamedTuple):
    """The settings of a sweep from Hydra and from the launcher's config."""

    plugin: str | None  # None: in this process
    options: dict[str, Any]
    context: HydraContext
    config: DictConfig

    @property
    def launcher(self) -> str:
        """The name of the launcher in `hydra/launcher`."""
        return str(self.config.hydra.runtime.choices["hydra/launcher"])


def launch_sweep(
    sweep: LauncherConfig, command: Command, overrides: Sequence[Sequence[str]], first: int
) -> list[JobReturn]:
    """Executes every run of a sweep; returns the area under the budget curve of each, or None, to Hydra's sweeper."""
    command.refuse_sweep()
    execute = executor(sweep, overrides, first)
    plans = [print_error(plan_job(sweep, command, job, number)) for number, job in enumerate(overrides, first)]
    results: dict[int, JobResult] = {i: plan for i, plan in enumerate(plans) if isinstance(plan, ErrorReport)}
    areas = []
    try:
        while todo := unfinished_plans(plans, results):
            new_results, signum = execute(todo)
            results |= new_results
            if signum is not None:
                raise stopped_by(signum)
    finally:
        for i, plan in enumerate(plans):
            name = " ".join(overrides[i]) if isinstance(plan, ErrorReport) else str(plan.folder)
            areas.append(command.add(Job(name, results.get(i, LOST_JOB))))
    pairs = zip(overrides, areas, strict=True)
    return [JobReturn(overrides=job, status=JobStatus.COMPLETED, _return_value=area) for job, area in pairs]


def executor(sweep: LauncherConfig, overrides: Sequence[Sequence[str]], first: int) -> Executor:
    """Returns the function that executes plans of a sweep, in this process or with Hydra's launcher.

    UserError if an option is invalid or the launcher is not installed.
    """
    if sweep.plugin is None:
        return partial(run_interleaved, at_once=runs_at_once(sweep.options))
    return partial(run_with_launcher, launcher_class(sweep, sweep.plugin), sweep, overrides, first)


def launcher_class(sweep: LauncherConfig, name: str) -> type[Launcher]:
    """Imports Hydra's launcher; UserError if it is not installed."""
    try:
        plugin: type[Launcher] = get_class(name)
    except Exception as error:
        install = "pip install 'sslpl[launchers]'"
        raise UserError(f"hydra/launcher={sweep.launcher}: cannot be imported; {install} ({error})") from error
    return plugin


def plan_job(sweep: LauncherConfig, command: Command, overrides: Sequence[str], number: int) -> Plan | ErrorReport:
    """Plans the run that the overrides of a job describe."""
    cfg = sweep.context.config_loader.load_sweep_config(sweep.config, list(overrides))
    original = HydraConfig.instance().cfg
    with read_write(cfg.hydra), open_dict(cfg.hydra):
        cfg.hydra.job.num = number
    HydraConfig.instance().set_config(cfg)
    task_cfg = cfg.copy()
    with read_write(task_cfg), open_dict(task_cfg):
        del task_cfg["hydra"]
    try:
        return job_plan(task_cfg, HydraConfig.get(), command.presets)
    finally:
        HydraConfig.instance().cfg = original


def unfinished_plans(plans: Sequence[Plan | ErrorReport], results: dict[int, JobResult]) -> dict[int, Plan]:
    """Returns the unfinished plans by index; adds finished ones to `results`, waits for those of other commands."""
    for i, plan in enumerate(plans):
        if isinstance(plan, ErrorReport) or (i in results and results[i] != Outcome("running")):
            continue
        if results.pop(i, None) is not None:
            print_waiting(plan)
            with lock.run_lock(plan.folder, wait=True):
                pass
        if (result := print_error(catch_errors(partial(finished_outcome, plan)))) is not None:
            results[i] = result
    return {i: plan for i, plan in enumerate(plans) if isinstance(plan, Plan) and i not in results}


def run_with_launcher(
    plugin: type[Launcher],
    sweep: LauncherConfig,
    overrides: Sequence[Sequence[str]],
    first: int,
    todo: Mapping[int, Plan],
) -> tuple[dict[int, JobResult], int | None]:
    """Executes plans with the launcher; returns their results by index, and the signal that stopped them, if any."""
    plans, jobs_overrides, runtime = list(todo.values()), [overrides[i] for i in todo], sweep.config.runtime
    gpus = torch.cuda.device_count() if runtime.device in ("auto", "cuda") else 0
    requested = sweep.options.get("n_jobs")
    jobs = min(concurrent_runs(requested, gpus, runtime.jobs_per_gpu, cpu_count()), len(plans))
    with monitored(plans, sweep.launcher) as stop:
        launcher = plugin(**launcher_options(sweep.launcher, sweep.options, jobs, gpus))
        task = partial(run_sweep_job, SweepCommand(tuple(sys.argv), os.getpid(), sweep.launcher, str(stop.file)))
        launcher.setup(hydra_context=sweep.context, task_function=task, config=without_sweep_folder(sweep.config))
        if sweep.launcher == "submitit_local":  # which would start all jobs at the same time
            with ThreadPoolExecutor(jobs) as pool:
                batches = pool.map(lambda job: launcher_results(launcher, [job], first), jobs_overrides)
                returned = [value for batch in batches for value in batch]
        else:
            returned = launcher_results(launcher, jobs_overrides, first)
    results = {i: job_result(value, todo[i]) for i, value in zip(todo, returned, strict=True)}
    # The exception that ended a launcher is that of many jobs: it is printed a single time.
    distinct = {id(value): result for value, result in zip(returned, results.values(), strict=True)}
    for result in distinct.values():
        if not isinstance(result, ErrorReport) or result.code < SIGNAL_BASE:
            print_error(result)
    return results, stop.signum


def launcher_results(launcher: Launcher, overrides: list[Sequence[str]], first: int) -> list[Any]:
    """Returns for each job what its task returned, or the exception that ended the launcher."""
    try:
        results = launcher.launch(overrides, initial_job_idx=first)
        return [result._return_value for result in results]  # the public attribute logs and raises
    except Exception as error:
        return [error] * len(overrides)


def job_result(returned: JobResult | Exception, plan: Plan) -> JobResult:
    """Returns the result of a job, from the status in its folder if its process was lost."""
    if isinstance(returned, Outcome | ErrorReport):
        return returned
    status = read_status(plan.folder)
    if status.get("state") == "finished":
        return Outcome("finished", float(status["aubc"]))
    if status.get("state") == "failed":
        return error_report(str(status.get("error")), FAILED)
    cause = " ".join(str(returned).splitlines()[:2]).split(". ")[0].rstrip(".")
    return error_report(f"{type(returned).__name__}: {cause[:300]}; rerun the same command to resume", FAILED)


def launcher_options(launcher: str, options: dict[str, Any], jobs: int, gpus: int) -> dict[str, Any]:
    """Returns the options as the launcher's plugin takes them, with this machine's defaults filled in."""
    options = dict(options)
    if launcher == "joblib":  # which divides the cores among its processes, as Ray and Slurm do
        options["n_jobs"] = jobs
    if launcher == "submitit_local":
        options.pop("n_jobs")
        options["gpus_per_node"] = options["gpus_per_node"] or gpus
        os.environ.setdefault("OMP_NUM_THREADS", str(threads_per_job(jobs, cpu_count())))
    if launcher == "ray":
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # or Ray drops lines that differ in numbers only
        init = {key: value for key, value in options["ray"]["init"].items() if value is not None}
        if "address" in init or "RAY_ADDRESS" in os.environ:
            init = {key: value for key, value in init.items() if key not in LOCAL_CLUSTER_OPTIONS}
            init["object_store_memory"] = None
        options["ray"] = OmegaConf.create({"init": init, "remote": options["ray"]["remote"]})
    return options


def without_sweep_folder(config: DictConfig) -> DictConfig:
    """Returns the config for the processes of a sweep, in which Hydra creates no folder."""
    config = config.copy()
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.overrides.hydra.append("hydra.sweep.dir=.")
    return config
