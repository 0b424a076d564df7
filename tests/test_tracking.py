import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from wandb_server import wandb_server

from sslpl.tracking import trackers
from sslpl.tracking.trackers import NoTracker, WandbTracker
from sslpl.types import RunInfo

KEY = "0123456789abcdef0123456789abcdef01234567"
LIFE = """
import logging, os, signal, sys, time
logging.basicConfig(level=logging.DEBUG)  # as Hydra does; wandb stays quiet all the same
from pathlib import Path
from sslpl.tracking import trackers
from sslpl.types import RunInfo
trackers.INIT_SECONDS = 2
tracker = trackers.WandbTracker()
handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
tracker.start(RunInfo("abc12345", "seed0", "sslpm", Path(sys.argv[1]), {}, {}, "digits", "5e771116"))
for step in range(5):
    tracker.log(step, {"train/loss": 1.0})
"""


@pytest.fixture(autouse=True)
def stranger(tmp_path, monkeypatch):
    """Removes W&B accounts and variables from the environment, and resets wandb afterwards."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(trackers, "INIT_SECONDS", 2)
    monkeypatch.setattr(trackers, "UPLOAD_SECONDS", 2)
    yield home
    import wandb
    from wandb.sdk.lib import wbauth

    wbauth.unauthenticate_session(update_settings=False)
    wandb.teardown()


@pytest.fixture
def server(monkeypatch):
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield server


def live(folder, steps, mode=None, exit_code=0, run_id="abc12345", **keys):
    """Tracks a run in one session; returns the seconds that `finish` took."""
    folder.mkdir(exist_ok=True)
    ledger = folder / "queries.csv"
    ledger.write_text("cycle,index\n0,3\n")
    tracker = WandbTracker(mode=mode, **keys)
    names = ("digits", "5e771116", "c0ffee")  # dataset, setting, config id
    tracker.start(RunInfo(run_id, "seed0", "sslpm", folder, {"seed": 0}, {"version": "0.1.0"}, *names))
    for step in steps:
        tracker.log(step, {"train/loss": 1 / (step + 1), "empty": float("nan"), "none": None})
    began = time.monotonic()
    tracker.finish(exit_code, {"aubc": 0.5}, [ledger])
    return time.monotonic() - began


def records(folder):
    """Reads the offline recordings of a run with wandb's reader; returns a list for each session."""
    sessions = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
        out = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
        sessions.append([json.loads(line) for line in out.splitlines() if line.startswith("{")])
    return sessions


def of_type(session, kind):
    return [record[kind] for record in session if record["type"] == kind]


def steps_of(session):
    return [entry["step"]["num"] for entry in of_type(session, "history")]


def test_offline_keeps_everything_on_disk_without_doubled_steps(tmp_path, capfd):
    folder = tmp_path / "run"
    live(folder, range(4), mode="offline", exit_code=1)
    live(folder, range(2, 6), mode="offline")
    out, err = capfd.readouterr()
    folders = sorted(map(str, folder.glob("wandb/offline-run-*")))
    assert out.splitlines() == [
        f"W&B: offline, in {folders[0]}",
        f"W&B: recorded offline, to send it: wandb sync {folders[0]}",
        f"W&B: offline, in {folders[1]}",
        f"W&B: recorded offline, to send it: wandb sync {folders[0]} {folders[1]}",
    ]
    assert err == ""
    first, second = records(folder)
    assert (steps_of(first), steps_of(second)) == ([0, 1, 2, 3], [4, 5])
    row = of_type(first, "history")[1]["item"]
    assert {k: v for k, v in row.items() if k[0] != "_"} == {"global_step": 1, "train/loss": 0.5}
    run = of_type(first, "run")[0]
    assert (run["run_id"], run["run_group"], run["display_name"]) == (
        "abc12345", "digits/sslpm/5e771116", "seed0",
    )  # fmt: skip
    config = run["config"]["update"]
    assert config | {"seed": 0, "provenance": {"version": "0.1.0"}} == config
    assert [of_type(session, "exit")[0].get("exit_code", 0) for session in (first, second)] == [1, 0]
    assert of_type(second, "artifact")[0]["name"] == "queries-abc12345"
    assert {"aubc": 0.5} in [entry["update"] for entry in of_type(second, "summary")]
    axes = {m.get("glob_name"): m.get("step_metric") for m in of_type(first, "metric") if "glob_name" in m}
    assert axes == {"*": "labeled", "train/*": "global_step", "finetune/*": "global_step"}


def test_online_each_step_arrives_once_across_a_resume(tmp_path, server, capfd):
    folder = tmp_path / "run"
    live(folder, range(4), exit_code=1)
    run = server.runs["abc12345"]
    assert run.exit_code == 1
    live(folder, range(2, 6))
    assert [line["_step"] for _, lines in run.posted for line in lines] == [0, 1, 2, 3, 4, 5]
    assert [line["global_step"] for line in run.lines] == [0, 1, 2, 3, 4, 5]
    assert run.exit_code == 0
    assert run.summary["aubc"] == 0.5
    assert (run.upsert["groupName"], run.upsert["displayName"]) == ("digits/sslpm/5e771116", "seed0")
    assert run.config["provenance"] == {"version": "0.1.0"}
    names = {"dataset_name": "digits", "method_name": "sslpm", "setting": "5e771116", "config_id": "c0ffee"}
    assert {key: run.config[key] for key in names} == names
    assert run.artifacts[0]["artifactCollectionName"] == "queries-abc12345"
    out, err = capfd.readouterr()
    assert out.splitlines() == [f"W&B: {server.url}/someone/sslpl/runs/abc12345"] * 2
    assert err == ""


def test_no_key_in_the_run_folder(tmp_path, server):
    live(tmp_path / "run", range(3))
    assert [line["_step"] for line in server.runs["abc12345"].lines] == [0, 1, 2]
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert len(files) > 3
    assert not [file for file in files if KEY.encode() in file.read_bytes()]


def test_two_runs_in_one_process_end_each_in_its_own_state(tmp_path, server):
    live(tmp_path / "first", range(2), exit_code=1, run_id="11111111")
    live(tmp_path / "second", range(3), run_id="22222222")
    ended = {name: (run.exit_code, len(run.lines)) for name, run in server.runs.items()}
    assert ended == {"11111111": (1, 2), "22222222": (0, 3)}


@pytest.mark.slow
@pytest.mark.parametrize("failure", ["refused", 500, 401, "hang"])
def test_a_server_that_fails_at_first_leaves_an_offline_run(tmp_path, server, failure, capfd, monkeypatch):
    if failure == "refused":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
    else:
        server.failure = failure
    began = time.monotonic()
    live(tmp_path / "run", range(4))
    assert time.monotonic() - began < 15
    err = capfd.readouterr().err
    assert err.count("W&B:") == 1 == len(err.splitlines())
    assert "goes on offline; the run's files are complete without it" in err
    assert [steps_of(session) for session in records(tmp_path / "run")] == [[0, 1, 2, 3]]


@pytest.mark.parametrize("failure", [500, "hang"])
def test_a_server_that_fails_later_does_not_hold_the_run(tmp_path, server, failure):
    tracker = WandbTracker()
    tracker.start(RunInfo("abc12345", "seed0", "sslpm", tmp_path, {}, {}))
    deadline = time.monotonic() + 10
    while "abc12345" not in server.runs and time.monotonic() < deadline:
        time.sleep(0.05)
    server.failure = failure
    began = time.monotonic()
    for step in range(100):
        tracker.log(step, {"train/loss": 1.0})
    assert time.monotonic() - began < 1
    tracker.finish(0, {}, [])
    assert time.monotonic() - began < 15


def side_by_side(folder, count=3):
    """Starts a tracker for each of several runs of this process, ends all of them; returns the runs' folders."""
    started = []
    for k in range(1, count + 1):
        (run := folder / f"run{k}").mkdir()
        started.append((run, WandbTracker()))
        names = ("digits", "5e771116", "c0ffee")
        started[-1][1].start(RunInfo(str(k) * 8, f"seed{k}", "sslpm", run, {"seed": k}, {}, *names))
    deadline = time.monotonic() + 20
    while len(trackers._Shared.open_ids) < count and time.monotonic() < deadline:
        time.sleep(0.05)
    for k, (_, tracker) in enumerate(started):
        for step in range(3 + k):
            tracker.log(step, {"train/loss": 1.0})
    for k, (_, tracker) in enumerate(started):
        tracker.finish(k, {"aubc": 0.5}, [])
    return [run for run, _ in started]


def test_runs_side_by_side_in_one_process_end_each_in_its_own_state(tmp_path, server):
    side_by_side(tmp_path)
    ended = {name: (run.exit_code, len(run.lines)) for name, run in server.runs.items()}
    assert ended == {"11111111": (0, 3), "22222222": (1, 4), "33333333": (2, 5)}
    assert trackers._Shared.open_ids == set()


@pytest.mark.slow
@pytest.mark.parametrize("failure", [500, 401, "hang"])
def test_a_server_that_fails_leaves_all_runs_side_by_side_offline(tmp_path, server, failure, capfd):
    server.failure = failure
    folders = side_by_side(tmp_path)
    lines = wandb_lines(capfd.readouterr().err)
    assert [line.endswith("goes on offline; the run's files are complete without it") for line in lines] == [True] * 3
    assert [[steps_of(session) for session in records(run)] for run in folders] == [[[*range(n)]] for n in (3, 4, 5)]


def raising(*args, **kwargs):
    raise RuntimeError("a bug\nof two lines")


@pytest.mark.parametrize("where", ["import", "setup", "init", "log", "log_artifact", "finish"])
def test_an_exception_anywhere_in_wandb_is_one_line(tmp_path, server, where, capfd, monkeypatch):
    import wandb

    with monkeypatch.context() as patch:
        if where == "import":
            patch.setitem(sys.modules, "wandb", None)  # `import wandb` raises ImportError
        else:
            patch.setattr(wandb if where in ("setup", "init") else wandb.Run, where, raising)
        assert live(tmp_path / "run", range(3)) < 5
    err = capfd.readouterr().err
    assert err.count("W&B:") == 1 == len(err.splitlines())


def test_auto_without_login_is_offline_and_online_says_why(tmp_path, capfd):
    live(tmp_path / "auto", range(2))
    assert capfd.readouterr().err == ""
    live(tmp_path / "online", range(2), mode="online", run_id="22222222")
    assert "nobody is logged in" in capfd.readouterr().err
    for name in ("auto", "online"):
        assert [steps_of(session) for session in records(tmp_path / name)] == [[0, 1]]


def test_a_netrc_entry_is_a_login(tmp_path, server, stranger, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    (stranger / "netrc").write_text(f"machine {server.url[7:]}\n  login user\n  password {KEY}\n")
    live(tmp_path / "run", range(2))
    assert len(server.runs["abc12345"].lines) == 2


@pytest.mark.parametrize(("mode", "left"), [("offline", 1), ("disabled", 0)])
def test_wandb_mode_of_the_user_counts(tmp_path, server, monkeypatch, mode, left):
    monkeypatch.setenv("WANDB_MODE", mode)
    live(tmp_path / "run", range(2))
    assert not server.runs
    assert len(list((tmp_path / "run").glob("wandb/offline-run-*"))) == left


@pytest.mark.slow
@pytest.mark.parametrize("session", ["first", "second"])
def test_the_named_command_sends_every_offline_session_once(tmp_path, server, capfd, session):
    folder = tmp_path / "a run"
    live(folder, range(4), mode="offline", exit_code=1)
    if session == "second":
        live(folder, range(2, 6), mode="offline")
    assert not server.runs
    said = capfd.readouterr().out.splitlines()[-1].removeprefix("W&B: recorded offline, to send it: ")
    assert shlex.split(said)[:2] == ["wandb", "sync"]
    wandb_sync(shlex.split(said))
    run = server.runs["abc12345"]
    steps = range(4 if session == "first" else 6)
    assert [line["_step"] for _, lines in run.posted for line in lines] == [*steps]
    assert run.exit_code == (session == "first")
    live(folder, range(4, 8), mode="offline")
    said = capfd.readouterr().out.splitlines()[-1]
    assert said.count("offline-run-") == 1, said  # the others have been sent
    live(folder, range(9))  # online: what is offline still is said
    assert capfd.readouterr().out.splitlines()[-1] == said


def wandb_sync(command):
    """Runs `wandb sync` in a process of its own."""
    env = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    module = [sys.executable, "-m", *command]
    done = subprocess.run(module, capture_output=True, text=True, timeout=60, env=env, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr


def test_an_offline_session_after_one_online_repeats_nothing(tmp_path, server):
    live(tmp_path / "run", range(4), exit_code=1)
    live(tmp_path / "run", range(6), mode="offline")
    assert [steps_of(session) for session in records(tmp_path / "run")] == [[4, 5]]


def test_the_environment_is_the_default_and_a_given_key_wins(tmp_path, server, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_ENTITY", "team")
    monkeypatch.setenv("WANDB_RUN_GROUP", "tuesday")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    live(tmp_path / "run", range(2))
    keys = {"project": "ours", "entity": "me", "group": "wednesday", "dir": str(tmp_path / "here")}
    live(tmp_path / "run", range(2), run_id="given", **keys)
    found = [server.runs[name].upsert for name in ("abc12345", "given")]
    places = [(each["project"], each["entity"], each["groupName"]) for each in found]
    assert places == [("theirs", "team", "tuesday"), ("ours", "me", "wednesday")]
    assert len(list((tmp_path / "elsewhere" / "wandb").glob("run-*-abc12345"))) == 1
    assert len(list((tmp_path / "here" / "wandb").glob("run-*-given"))) == 1
    assert not list((tmp_path / "run" / "wandb").glob("run-*"))


@pytest.mark.parametrize(
    ("environment", "mode", "online", "offline"),
    [
        ({"WANDB_DISABLED": "true"}, None, 0, 0),
        ({"WANDB_DISABLED": "false"}, None, 1, 0),
        ({"WANDB_DISABLED": "true"}, "online", 1, 0),
        ({"WANDB_MODE": "offline"}, "online", 1, 0),
        ({"WANDB_MODE": "offline"}, "auto", 1, 0),
        ({"WANDB_MODE": "dryrun"}, None, 0, 1),
        ({"WANDB_MODE": "disabled"}, "offline", 0, 1),
        ({"WANDB_MODE": ""}, None, 1, 0),
        ({"WANDB_MODE": "ofline"}, "online", 1, 0),
    ],
)
def test_how_the_mode_of_the_environment_and_the_key_meet(
    tmp_path, server, monkeypatch, capfd, environment, mode, online, offline
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    live(tmp_path / "run", range(2), mode=mode)
    assert (len(server.runs), len(list((tmp_path / "run").glob("wandb/offline-run-*")))) == (online, offline)
    assert capfd.readouterr().err == ""
    assert all(os.environ[name] == value for name, value in environment.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("WANDB_MODE", "ofline", "must be online, offline or disabled"),
        ("WANDB_BASE_URL", "api.example.org", "must be the address of a W&B server, such as https://api.wandb.ai"),
    ],
)
def test_a_variable_that_wandb_refuses_is_named_and_the_run_goes_on_offline(
    tmp_path, server, monkeypatch, capfd, name, value, allowed
):
    monkeypatch.setenv(name, value)
    for run_id in ("11111111", "22222222"):  # in one process: the second must not go to another server
        live(tmp_path / run_id, range(4), run_id=run_id)
        err = capfd.readouterr().err
        assert err == f"W&B: {name}={value}: {allowed}; goes on offline; the run's files are complete without it\n"
    assert not server.runs
    assert os.environ[name] == value
    monkeypatch.delenv(name)
    for run_id in ("11111111", "22222222"):
        assert [steps_of(session) for session in records(tmp_path / run_id)] == [[0, 1, 2, 3]]


def test_a_tracker_that_cannot_even_go_offline_says_so(tmp_path, server, monkeypatch, capfd):
    import wandb

    monkeypatch.setattr(wandb, "init", raising)
    live(tmp_path / "run", range(4))
    assert capfd.readouterr().err == ("W&B: a bug; goes on without W&B; the run's files are complete without it\n")


@pytest.mark.slow
def test_a_short_run_without_a_server_waits_for_its_offline_recording(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(trackers, "INIT_SECONDS", 4)
    monkeypatch.setattr(trackers, "FAILING_SECONDS", 4)  # less than opening online and offline take together
    assert live(tmp_path / "run", range(4)) > 3
    assert [steps_of(session) for session in records(tmp_path / "run")] == [[0, 1, 2, 3]]
    assert of_type(records(tmp_path / "run")[0], "exit")
    assert "not everything" not in capfd.readouterr().err


DEATH = """
import subprocess
while len(tracker._received) < 5:
    time.sleep(0.1)
time.sleep(3)
found = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "wandb-core"], capture_output=True, text=True)
cores = [int(line) for line in found.stdout.split()]
assert cores
for core in cores:
    os.kill(core, signal.SIGKILL)
time.sleep(0.5)
if RESTART is False:
    trackers.WandbTracker._open = lambda *_: 1 / 0
for step in range(5, 8):
    tracker.log(step, {"train/loss": 1.0})
tracker.finish(0, {"aubc": 0.5}, [])
"""
SECOND_RUN = """
second = trackers.WandbTracker()
(folder := Path(sys.argv[1]) / "second").mkdir()
second.start(RunInfo("def12345", "seed1", "sslpm", folder, {}, {}, "digits", "5e771116"))
for step in range(4):
    second.log(step, {"train/loss": 1.0})
while len(second._received) < 4:
    time.sleep(0.1)
"""
DIED = "W&B: its own process ended (Connection lost)"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_when_wandbs_own_process_dies_every_number_is_sent_again(tmp_path, server, monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    done = in_a_process("RESTART = True" + DEATH, tmp_path)
    assert (done.returncode, wandb_lines(done.stderr)) == (
        0, [f"{DIED}, and was started again; the run's files are complete without it"],
    )  # fmt: skip
    if mode == "offline":
        assert [steps_of(session) for session in records(tmp_path)] == [[*range(8)]]
        wandb_sync(shlex.split(done.stdout.splitlines()[-1].partition("send it: ")[2]))
    run = server.runs["abc12345"]
    assert [line["_step"] for _, lines in run.posted for line in lines] == [*range(8)]
    assert (run.exit_code, run.summary["aubc"]) == (0, 0.5)


@pytest.mark.slow
def test_when_wandbs_own_process_dies_both_runs_side_by_side_send_everything_again(tmp_path, server):
    end = "second.log(4, {'train/loss': 1.0})\nsecond.finish(0, {}, [])"
    done = in_a_process(SECOND_RUN + "RESTART = True" + DEATH + end, tmp_path)
    assert done.returncode == 0, done.stderr
    again = f"{DIED}, and was started again; the run's files are complete without it"
    assert wandb_lines(done.stderr) == [again, again]
    sent = {name: [line["_step"] for _, lines in run.posted for line in lines] for name, run in server.runs.items()}
    assert sent == {"abc12345": [*range(8)], "def12345": [*range(5)]}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_when_wandbs_own_process_cannot_be_started_again_a_line_says_what_is_missing(
    tmp_path, server, monkeypatch, mode
):
    monkeypatch.setenv("WANDB_MODE", mode)
    done = in_a_process("RESTART = False" + DEATH, tmp_path)
    assert done.returncode == 0
    (line,) = wandb_lines(done.stderr)
    said = f"{DIED}; the numbers since then did not arrive"
    if mode == "offline":
        (folder,) = tmp_path.glob("wandb/offline-run-*")
        said += f"; what was recorded before: wandb sync {folder}"
        wandb_sync(["wandb", "sync", str(folder)])
    assert line == f"{said}; the run's files are complete without it"
    run = server.runs["abc12345"]
    assert [line["_step"] for _, lines in run.posted for line in lines] == [*range(5)]


def wandb_lines(text):
    """Returns the lines printed by sslpl or wandb, with tracebacks but without other logs."""
    return [line for line in text.splitlines() if not line.startswith("DEBUG:")]


def in_a_process(code, folder):
    command = [sys.executable, "-c", LIFE + code, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, cwd=Path(__file__).parents[1])


@pytest.mark.slow
def test_a_killed_offline_run_doubles_nothing(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    kill = "time.sleep(2); os.kill(os.getpid(), signal.SIGKILL)"
    assert in_a_process(kill, folder).returncode == -signal.SIGKILL
    live(folder, range(3, 8))
    steps = [step for session in records(folder) for step in steps_of(session)]
    assert steps == list(range(8))


@pytest.mark.slow
def test_a_hanging_server_delays_neither_exit_nor_signals(tmp_path, server):
    server.failure = "hang"
    finish = """
tracker.finish(0, {}, [])
assert handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
print(time.time())
"""
    done = in_a_process(finish, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3  # where it is offline, how to send it, the time
    assert len([line for line in done.stderr.splitlines() if "wandb" in line or "W&B" in line]) == 1, done.stderr
    assert time.time() - float(done.stdout.splitlines()[-1]) < 3


def test_no_tracker_does_not_import_wandb(tmp_path):
    code = """
tracker = trackers.NoTracker(); tracker.start(None); tracker.log(0, {}); tracker.finish(0, {}, [])
assert "wandb" not in sys.modules
"""
    own = LIFE.split("tracker = ")[0]
    command = [sys.executable, "-c", own + code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    NoTracker().finish(0, {}, [])
