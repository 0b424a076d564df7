"""Errors of a user: one line that names key, value and what is allowed, exit code 2, nothing written."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY, Result, run_folder
from omegaconf import OmegaConf

Command = Callable[..., Result]

ERRORS = {
    "an unknown group": (["datset=cifar10"], "datset=cifar10: no such key; did you mean dataset?"),
    "an unknown option": (["dataset=cifra10"], "dataset=cifra10: no such option; did you mean cifar10?"),
    "an unknown method": (["method=slpm"], "method=slpm: no such option; did you mean sslpm?"),
    "an unknown experiment": (["experiment=cifar100"], "experiment=cifar100: no such option"),
    "an unknown scorer": (["query/scorer=entrpy"], "query/scorer=entrpy: no such option; did you mean entropy?"),
    "an unknown key": (["training.epoch=3"], "training.epoch=3: no such key; did you mean epochs?"),
    "an unknown key that is added": (["+training.epoch=3"], "training.epoch=3: no such key; did you mean epochs?"),
    "an unknown top-level key": (["sed=1"], "sed=1: no such key; did you mean seed?"),
    "a word for a number": (["training.epochs=many"], "training.epochs=many: must be a valid integer"),
    "a fraction for a count": (["training.epochs=2.5"], "training.epochs=2.5: must be a valid integer"),
    "a truth value for a count": (["training.epochs=true"], "training.epochs=true: must be a valid integer"),
    "nothing for a count": (["training.epochs=null"], "training.epochs=null: must be a valid integer"),
    "no epochs": (["training.epochs=0"], "training.epochs=0: must be greater than or equal to 1"),
    "a negative rate": (["training.rate=-1"], "training.rate=-1: must be greater than 0"),
    "an infinite rate": (["training.rate=inf"], "training.rate=inf: must be a finite number"),
    "an empty batch": (["training.batch_size=0"], "training.batch_size=0: must be greater than or equal to 1"),
    "a number for a truth value": (["training.trim=2"], "training.trim=2: must be a valid boolean"),
    "an unknown precision": (["training.precision=half"], "training.precision=half: must be 'auto', 'float32' or"),
    "a decay outside the training": (["training.decay_at=[1.5]"], "training.decay_at=[1.5]: must be less than or"),
    "a threshold above one": (["ssl.threshold=1.5"], "ssl.threshold=1.5: must be less than or equal to 1"),
    "no initial labels": (["budget.initial=0"], "budget.initial=0: must be an int of at least 1 (images) or a float"),
    "a share above one": (["budget.initial=1.5"], "budget.initial=1.5: must be an int of at least 1 (images)"),
    "no cycles": (["budget.cycles=0"], "budget.cycles=0: must be greater than or equal to 1"),
    "a budget above the pool": (["budget.cycles=50"], "the pool has 1,437 images: lower budget.initial"),
    "fewer candidates than queries": (["budget.candidates=10"], "budget.candidates=10: must be at least per_cycle"),
    "a negative seed": (["seed=-1"], "seed=-1: must be greater than or equal to 0"),
    "a word for a seed": (["seed=lucky"], "seed=lucky: must be a valid integer"),
    "nothing left to learn from": (["budget.validation=1.0"], "budget.validation=1.0: must be less than 1"),
    "a batch held out whole": (["budget.per_cycle=1", "budget.validation=0.5"], "budget.validation=0.5: must leave at"),
    "nothing held out": (["budget.validation=0.001"], "budget.validation=0.001: must hold out at least one of initial"),
    "nothing to choose by": (["training.checkpoint=best"], "training.checkpoint=best: must be last unless"),
    "an unknown checkpoint": (["training.checkpoint=first"], "training.checkpoint=first: must be 'last' or 'best'"),
    "an unknown initial pool": (["budget.initial_pool=even"], "budget.initial_pool=even: must be 'random', 'balanced'"),
    "fewer than classes": (["budget.initial=9", "budget.initial_pool=balanced"], "budget.initial=9: must be at least"),
    "no initial ratio": (["budget.initial_pool=imbalanced"], "budget.initial_ratio=null: must be a number of at least"),
    "an idle initial ratio": (["budget.initial_ratio=2"], "budget.initial_ratio=2.0: must be null unless"),
    "an unknown imbalance": (["dataset.imbalance=tail"], "dataset.imbalance=tail: must be 'none', 'long_tailed' or"),
    "no imbalance ratio": (["dataset.imbalance=stepped"], "dataset.imbalance_ratio=null: must be a number of at least"),
    "an idle imbalance ratio": (["dataset.imbalance_ratio=2"], "dataset.imbalance_ratio=2.0: must be null unless"),
    "a ratio below one": (["dataset.imbalance=stepped", "dataset.imbalance_ratio=0.5"], "imbalance_ratio=0.5: must be"),
    "noise above one": (["dataset.label_noise=1.5"], "dataset.label_noise=1.5: must be less than or equal to 1"),
    "an unknown key of a dataset": (["dataset.imbalanc=stepped"], "no such key; did you mean imbalance?"),
    "no threads": (["runtime.num_threads=0"], "runtime.num_threads=0: must be greater than or equal to 1"),
    "an unknown device": (["runtime.device=tpu"], "runtime.device=tpu: must be 'auto', 'cpu' or 'cuda'"),
    "a dropout of one": (["backbone.dropout=1.0"], "backbone.dropout=1.0: must be less than 1"),
    "a module of no width": (["module.width=0"], "module.width=0: must be greater than or equal to 1"),
    "a negative margin": (["ranking=margin", "ranking.margin=-1"], "ranking.margin=-1: must be greater than 0"),
    "no module to fine-tune": (["module=none"], "module=none: ssl must be none"),
    "no module to predict losses": (["method=random", "query=predicted_loss"], "module=none: query.scorer needs"),
    "missing data": (["dataset=cifar10", "dataset.root=nowhere", "dataset.download=false"], "dataset.root=nowhere"),
    "an output folder below a file": (["runtime.output_dir=/dev/null/x"], "runtime.output_dir=/dev/null/x: cannot be"),
    "an unknown selector": (["query/selector=tpo"], "query/selector=tpo: no such option; did you mean top?"),
    "an unknown ssl method": (["ssl=fixmatch"], "ssl=fixmatch: no such option; did you mean flexmatch?"),
    "an empty subset": (["query.subset=0"], "query.subset=0: must be greater than or equal to 1"),
    "a cut-out of less than nothing": (["dataset.cutout=-1"], "dataset.cutout=-1: must be greater than or equal to 0"),
    "a fraction for a seed": (["seed=1.5"], "seed=1.5: must be a valid integer"),
    "minutes below zero": (["runtime.checkpoint_minutes=-1"], "runtime.checkpoint_minutes=-1: must be greater than"),
    "an unknown W&B mode": (["tracker=wandb", "tracker.mode=on"], "tracker.mode=on: must be 'auto', 'online' or"),
    "a momentum of one": (["training.momentum=1"], "training.momentum=1: must be less than 1"),
    "a word for a switch": (["runtime.deterministic=maybe"], "runtime.deterministic=maybe: must be a valid boolean"),
    "a torn override": (["training.epochs"], "training.epochs"),
    "brackets that do not close": (["training.decay_at=[0.5"], "training.decay_at=[0.5: no viable"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_gets_one_line(sslpl: Command, case: str) -> None:
    arguments, expected = ERRORS[case]
    done = sslpl("tracker=none", *arguments)
    assert done.code == 2, done
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith("sslpl: ")
    assert expected in done.err
    assert done.out == ""
    assert list(Path().iterdir()) == []


def test_help_explains_every_group(sslpl: Command) -> None:
    from sslpl.run.errors import CONF

    done = sslpl("--help")
    assert done.code == 0
    for group in CONF.iterdir():
        if group.is_dir() and group.name != "hydra":
            assert any(line.startswith(f"  {group.name} ") for line in done.out.splitlines()), group.name
            assert f"\n{group.name}: " in done.out


QUERY_PARTS = ("query/scorer=entropy", "query/selector=top")
GROUP_ERRORS = {
    "a top-level key that is added": (["+epochs=3"], "epochs=3: no such key; did you mean training.epochs?"),
    "a misspelled one": (["+sed=3"], "sed=3: no such key; did you mean seed? (known: backbone, budget, dataset, "),
    "a tree that is added": (["+foo.bar=3"], "foo: no such key; known: backbone, budget, dataset, "),
    "a deleted query": (["~query"], "query: must be one of its options (query=...), and not removed"),
    "a deleted training": (["~training"], "training: must be one of its options (training=...), and not removed"),
    "a deleted training with a value": (["~training", "training.epochs=3"], "training: must be one of its options"),
    "a deleted method": (["~method"], "method: must be one of its options (method=...), and not removed"),
    "a deleted tracker": (["~tracker"], "tracker: must be one of its options (tracker=...), and not removed"),
    "a deleted module": (["~module"], "module: must be one of its options (module=...), and not removed"),
    "a deleted seed": (["~seed"], "seed: must not be removed"),
    "a deleted dataset": (["~dataset"], "dataset: must be one of its options (dataset=...), and not removed"),
    "a group without option": (["module=null"], "module=null: must be one of the options of module"),
    "a group without target": (["~query._target_"], "query: must be one of its options"),
    "a tree for a method": (["+method.a=1"], "method"),
    "a sweep of values": (["seed=0,1"], "seed=0,1: several values are a sweep, which needs -m (--multirun)"),
    "a sweep of options": (["method=random,sslpm"], "method=random,sslpm: several values are a sweep, which needs -m"),
    "a sweep that is a range": (["seed=range(3)"], "seed=range(3): several values are a sweep, which needs -m"),
    "values that may be a list": (["training.decay_at=0.5,0.6"], "; one list is written training.decay_at=[0.5,0.6]"),
    "a scorer without selector": (
        ["method=random", QUERY_PARTS[0]],
        "query/scorer=entropy: the query chosen takes no scorer and selector; name both and no query, as in "
        "query/scorer=entropy query/selector=top, or a query that does, as in query=selective_clustering",
    ),
    "a selector without scorer": (["method=random", QUERY_PARTS[1]], "query/selector=top: the query chosen takes no"),
    "a scorer for another query": (["query=random", *QUERY_PARTS], "query/scorer=entropy: the query chosen takes no"),
    "a scorer for some methods": (
        ["-m", "method=sslpm,random", *QUERY_PARTS],
        "query/scorer=entropy: the query chosen takes no scorer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GROUP_ERRORS)
def test_an_error_in_the_groups_gets_one_line(sslpl: Command, case: str) -> None:
    arguments, expected = GROUP_ERRORS[case]
    done = sslpl(*arguments)
    assert (done.code, done.err.count("\n"), done.out) == (2, 1, ""), done
    assert done.err.startswith("sslpl: ")
    assert expected in done.err
    assert list(Path().iterdir()) == []


def test_the_groups_that_are_required_are_those_of_the_primary_config() -> None:
    from sslpl.config.validation import GROUPS
    from sslpl.run.errors import CONF

    folders = {path.name for path in CONF.iterdir() if path.is_dir()}
    assert {*GROUPS} == folders - {"hydra", "experiment"}


@pytest.mark.parametrize("sweep", [False, True])
def test_a_scorer_and_a_selector_choose_a_query_made_of_them(sslpl: Command, sweep: bool) -> None:
    arguments = ("-m", "seed=0,1", *TINY) if sweep else TINY
    done = sslpl(*arguments, "method=random", *QUERY_PARTS, "budget.cycles=1")
    assert (done.code, done.err) == (0, "")
    runs = [path.parent for path in Path("outputs").glob("**/status.json")]
    assert len(runs) == 1 + sweep
    for run in runs:
        assert run.parent.name == "random+query=selective_clustering+query.selector=top+query.scorer=entropy"
        query = OmegaConf.load(run / "config.yaml").query
        assert query.scorer._target_.endswith(".entropy")
        assert query.selector._target_.endswith(".top")


@pytest.fixture
def own_config(tmp_path: Path) -> tuple[str, ...]:
    """Writes a primary config of a user, which adds a folder of options."""
    folder, options = tmp_path / "mine", tmp_path / "further options" / "query"
    folder.mkdir()
    options.mkdir(parents=True)
    (options / "spread_out.yaml").write_text("_target_: sslpl.query.core_set\n_partial_: true\n")
    lines = ["defaults: [config, override query: spread_out, _self_]", f"hydra: {{searchpath: ['{options.parent}']}}"]
    (folder / "my_config.yaml").write_text("\n".join(lines))
    return ("-cd", str(folder), "-cn", "my_config")


def test_a_search_path_in_a_primary_config_is_honored(sslpl: Command, own_config: tuple[str, ...]) -> None:
    done = sslpl(*own_config, *TINY, "method=random", "budget.cycles=1")
    assert (done.code, done.err) == (0, "")
    assert run_folder().parent.name == "random+query=spread_out"


@pytest.mark.parametrize("sweep", [(), ("-m",)])
def test_results_are_written_where_the_command_was_started(sslpl: Command, sweep: tuple[str, ...]) -> None:
    overrides = ("method=random", "budget.cycles=1", "hydra.run.dir=other")
    done = sslpl(*sweep, *TINY, *overrides, "hydra.job.chdir=true")
    assert (done.code, done.err) == (0, "")
    assert (run_folder() / "summary.json").is_file()


@pytest.mark.parametrize(
    ("argument", "line"),
    [("+epochs=3", "epochs=3: no such key; did you mean pretraining.epochs?"), ("~runtime", "runtime: must be")],
)
def test_a_pretraining_refuses_unknown_and_removed_groups(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, argument: str, line: str
) -> None:
    from sslpl.pretrain.__main__ import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["pretrain", argument])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capfd.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert line in err
    assert list(tmp_path.iterdir()) == []
