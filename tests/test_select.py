"""Query strategies over arrays: they select what they select inside a run, and name what they lack."""

import re
import runpy
import shlex
import subprocess
import sys
import warnings
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract import global_random_state
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import OmegaConf
from test_docs import code, starting
from test_query import SHORT, STRATEGIES
from torch import Tensor, nn

from sslpl.clustering import large_pools
from sslpl.config.build import build_setup
from sslpl.files import CONF
from sslpl.loop import initial_state
from sslpl.phases.query import query_context, run_strategy
from sslpl.predict.predictions import FilePredictions, predictions_npz
from sslpl.query.context import needs
from sslpl.query.selection import ranked
from sslpl.seeds import rng
from sslpl.select import select, strategies
from sslpl.select.arrays import SHAPES
from sslpl.select.missing import MissingArgument, missing_tensor
from sslpl.select.named_strategies import build_strategy
from sslpl.select.needed_arguments import MissingArguments, NeedsRun
from sslpl.setup import Setup
from sslpl.state import State
from sslpl.types import QueryContext, QueryStrategy, Selection, UserError

AVAILABLE = sorted(strategies())
SIZES = {"N": 40, "L": 15, "C": 4, "D": 6, "M": 3}
SEED, CYCLE, N = 3, 1, 7


def composed(*overrides: str) -> Any:
    """A config as the command line composes it."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=[*overrides])


@cache
def run() -> tuple[Setup, State]:
    """A run on digits before the query of cycle 1, with everything that a strategy can ask for."""
    cfg = composed("method=sslpm", "query=class_balanced_random", f"seed={SEED}", "budget.initial=30", "tracker=none",
                   "budget.per_cycle=20", "budget.candidates=300", "runtime.num_threads=1")  # fmt: skip
    setup = build_setup(OmegaConf.to_container(cfg, resolve=True), instantiate(cfg.runtime))
    state = initial_state(setup)
    state.cycle = CYCLE
    others = [setup.build(cycle)[0].state_dict() for cycle in range(1, 4)]
    state.previous_weights, state.snapshots = others[0], others[1:]
    return setup, state


@cache
def run_arguments() -> dict[str, Any]:
    """Everything that the run offers, as arguments of `select`."""
    context = query_context(*run())
    unlabeled, labeled = context.predictions, context.labeled_predictions
    return {
        "logits": unlabeled.logits,
        "embeddings": unlabeled.embedding,
        "predicted_loss": unlabeled.predicted_loss,
        "labeled_logits": labeled.logits,
        "labeled_embeddings": labeled.embedding,
        "labeled_predicted_loss": labeled.predicted_loss,
        "labels": context.labels,
        "previous_logits": context.previous.logits,
        "committee_logits": [member.logits for member in context.committee],
        "head": context.backbone.head,
        "hidden_labels": context.hidden_labels(),
        "candidates": context.candidates,
        "seed": SEED,
        "cycle": CYCLE,
    }


def options(name: str) -> dict[str, Any]:
    """The few steps with which the tests run a strategy that trains networks."""
    pairs = (option.removeprefix("query.").split("=") for option in SHORT.get(name, ()))
    return {key: int(value) for key, value in pairs}


def selected_in_the_run(query: QueryStrategy, n: int) -> tuple[list[int], Tensor]:
    """What a strategy selects inside the run, as rows of the unlabeled images, and its scores."""
    setup, state = run()
    setup = setup._replace(query=query, needs=needs(query))
    selection = run_strategy(setup, state, n, rng(setup.seed, "query", state.cycle))
    return torch.searchsorted(state.pool.unlabeled, selection.index).tolist(), selection.score


def arrays(*names: str) -> dict[str, Any]:
    """Random arguments of these names, of consistent sizes."""
    generator = np.random.default_rng(0)
    made: dict[str, Any] = {"num_unlabeled": SIZES["N"], "num_classes": SIZES["C"]}
    made |= {name: generator.random(tuple(SIZES[size] for size in shape)) for name, shape in SHAPES.items()}
    made |= {name: generator.integers(SIZES["C"], size=len(made[name])) for name in ("labels", "hidden_labels")}
    made["probabilities"] /= made["probabilities"].sum(axis=1, keepdims=True)
    made["head"] = (made["head_weight"], made["head_bias"])
    return {name: made[name] for name in names}


class TestSelection:
    @pytest.mark.parametrize("name", AVAILABLE)
    def test_is_that_of_a_run_on_the_same_predictions(self, name: str) -> None:
        query = instantiate(composed(f"query={name}", *SHORT.get(name, ())).query)
        positions, scores = selected_in_the_run(query, N)
        rows = select(name, N, options=options(name), **run_arguments())
        assert rows.positions.tolist() == positions
        assert np.array_equal(rows.scores, scores.numpy(), equal_nan=True)
        assert (rows.positions.dtype, rows.scores.dtype) == (np.int64, np.float64)

    @pytest.mark.parametrize(
        "parts", [("entropy", "power"), ("predicted_loss", "selective_clustering"), ("bald", "power")]
    )
    def test_is_that_of_a_run_for_a_scorer_and_a_selector(self, parts: tuple[str, str]) -> None:
        scorer, selector = parts
        chosen = (f"query/scorer={scorer}", f"query/selector={selector}", "query.subset=100")
        positions, _ = selected_in_the_run(instantiate(composed("query=entropy", *chosen).query), N)
        named = {"scorer": scorer, "selector": selector, "subset": 100}
        assert select("entropy", N, options=named, **run_arguments()).positions.tolist() == positions

    @pytest.mark.parametrize("name", ["badge", "kmeans", "typiclust"])
    def test_is_that_of_a_run_in_a_large_pool(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("faiss")
        monkeypatch.setattr(large_pools, "LARGE", 0)
        positions, _ = selected_in_the_run(instantiate(composed(f"query={name}").query), N)
        assert select(name, N, **run_arguments()).positions.tolist() == positions

    def test_depends_on_seed_and_cycle_alone(self) -> None:
        draws = [{}, {"seed": 1}, {"cycle": 2}, {"seed": np.int64(0), "cycle": 1}]
        before = global_random_state()
        picked = [select("kmeans", 5, **arrays("embeddings"), **draw).positions.tolist() for draw in draws]
        assert global_random_state() == before
        assert picked[3] == picked[0]
        assert len({tuple(rows) for rows in picked}) == 3

    def test_discrepancy_is_reversed_in_cycle_0(self) -> None:
        given = arrays("logits", "previous_logits")
        last, first = (select("temporal_output_discrepancy", SIZES["N"], cycle=cycle, **given) for cycle in (1, 0))
        assert last.positions.tolist() == first.positions.tolist()[::-1]

    def test_of_a_strategy_of_your_own(self) -> None:
        def lowest_logit(context: QueryContext, n: int, rng: torch.Generator, *, sign: int = -1) -> Selection:
            score = sign * context.predictions.logits.amax(dim=1)
            chosen = ranked(score, rng)[:n]
            return Selection(context.predictions.index[chosen], score.cpu()[chosen].double())

        logits = arrays("logits")["logits"]
        order = logits.max(axis=1).argsort()
        assert select(lowest_logit, 5, logits=logits).positions.tolist() == order[:5].tolist()
        highest = select(lowest_logit, 5, logits=logits, options={"sign": 1})
        assert highest.positions.tolist() == order[::-1][:5].tolist()
        with pytest.raises(MissingArguments, match=r"^lowest_logit needs logits: pass logits=\[N, C\]$"):
            select(lowest_logit, 5, embeddings=logits)


class TestArrays:
    def test_may_be_of_numpy_or_torch_or_lists(self) -> None:
        given = arrays("logits", "embeddings")
        frozen = {name: np.asfortranarray(array.astype(np.float32)) for name, array in given.items()}
        for array in frozen.values():
            array.flags.writeable = False
        tensors = {name: torch.from_numpy(array).requires_grad_() for name, array in given.items()}
        lists = {name: array.tolist() for name, array in given.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            picked = [select("badge", 5, **kind).positions.tolist() for kind in (given, frozen, tensors, lists)]
        assert picked[1:] == picked[:1] * 3

    def test_stay_as_they_are_and_are_not_copied(self) -> None:
        logits = torch.rand(20, 3)
        seen = []

        def look(context: QueryContext, n: int, rng: torch.Generator) -> Selection:
            seen.append(context.predictions.logits.data_ptr())
            return Selection(torch.arange(n), torch.zeros(n).double())

        select(look, 2, logits=logits)
        select(look, 2, logits=logits.numpy())
        assert seen == [logits.data_ptr()] * 2

    def test_probabilities_stand_for_logits(self) -> None:
        probabilities = arrays("probabilities")["probabilities"]
        probabilities[0] = [0, 0, 1, 0]
        given = select("entropy", SIZES["N"], probabilities=probabilities)
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = -np.nansum(probabilities * np.log(probabilities), axis=1)
        assert given.positions[-1] == 0
        np.testing.assert_allclose(given.scores, expected[given.positions], atol=1e-6)

    def test_a_head_may_be_a_layer_or_a_pair(self) -> None:
        given = arrays("embeddings", "head")
        weight, bias = given["head"]
        layer = nn.Linear(weight.shape[1], len(weight))
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))
        bald = partial(select, "bald", 5, embeddings=given["embeddings"])
        pair, module = bald(head=(weight, bias)), bald(head=layer)
        assert pair.positions.tolist() == module.positions.tolist()
        assert pair.scores.tolist() == module.scores.tolist()
        layer.bias = None
        assert bald(head=layer).scores.tolist() == bald(head=(weight, np.zeros_like(bias))).scores.tolist()

    def test_no_labeled_row_is_allowed_for_the_first_selection_alone(self) -> None:
        given = {"embeddings": np.random.default_rng(0).random((30, 4)), "labeled_embeddings": np.zeros((0, 4))}
        assert len(select("typiclust", 5, **given).positions) == 5
        for name in ("core_set", "uncertain_gcn"):
            with pytest.raises(UserError, match=rf"^labeled_embeddings: must have at least one row for {name}$"):
                select(name, 5, **given)

    @pytest.mark.parametrize(
        ("change", "line"),
        [
            ({"logits": np.zeros((40, 0))}, "logits: must not be empty, [N, C] is [40, 0]"),
            ({"logits": np.zeros(40)}, "logits: must have the shape [N, C], not [40]"),
            ({"embeddings": np.zeros((39, 6))},
             "embeddings: must have the shape [N, D] with N=40 of logits, not [39, 6]"),
            ({"num_classes": 3}, "logits: must have the shape [N, C] with C=3 of num_classes, not [40, 4]"),
            ({"num_unlabeled": 0}, "num_unlabeled=0: must be greater than or equal to 1"),
            (
                {"labeled_embeddings": np.zeros((5, 7))},
                "labeled_embeddings: must have the shape [L, D] with D=6 of embeddings, not [5, 7]",
            ),
            (
                {"committee_logits": [np.zeros((40, 5))]},
                "committee_logits: must have the shape [M, N, C] with C=4 of logits, not [1, 40, 5]",
            ),
            ({"head": (np.zeros((3, 6)), np.zeros(3))},
             "head_weight: must have the shape [C, D] with C=4 of logits, not [3, 6]"),
            ({"head": np.zeros((4, 6))}, "head: must be a pair (weight [C, D], bias [C]) or an nn.Linear"),
            ({"logits": np.full((40, 4), np.nan)}, "logits: must be finite in float32; row 0 is not"),
            ({"embeddings": np.full((40, 6), 1e300)}, "embeddings: must be finite in float32; row 0 is not"),
            ({"embeddings": [["a"] * 6] * 40}, "embeddings: must hold numbers, not <U1"),
            ({"labels": [0, 4]}, "labels: must be classes from 0 to 3, not 0 to 4"),
            ({"labels": [0, -1]}, "labels: must be classes from 0 to 3, not -1 to 0"),
            ({"labels": [0.5]}, "labels: must hold whole numbers, not float32"),
            ({"labels": torch.tensor([True])}, "labels: must hold whole numbers, not bool"),
            ({"probabilities": np.zeros((40, 4))}, "probabilities: must not be given together with logits"),
            ({"logits": None, "probabilities": np.ones((40, 4))},
             "probabilities: must not be negative, and each row must sum to 1"),
            ({"n": 41}, "n=41: must be at most 40, the number of unlabeled rows"),
            ({"n": 0}, "n=0: must be greater than or equal to 1"),
            ({"n": 2.0}, "n=2.0: must be a valid integer"),
            ({"seed": -1}, "seed=-1: must be greater than or equal to 0"),
            ({"candidates": 1.5},
             "candidates=1.5: must be an int of at least 1 (images) or a float above 0 and at most 1 (a share of the "
             "pool)"),
        ],
    )  # fmt: skip
    def test_that_do_not_fit_are_refused_in_one_line(self, change: dict[str, Any], line: str) -> None:
        with pytest.raises(UserError) as refused:
            select(**{"strategy": "badge", "n": 5} | arrays("logits", "embeddings") | change)
        assert str(refused.value) == line

    def test_rows_of_unequal_lengths(self) -> None:
        with pytest.raises(UserError, match=r"^logits: must be an array of numbers \("):
            select("margin", 1, logits=[[1.0], [1.0, 2.0]])

    def test_the_first_row_that_is_not_finite_is_named(self) -> None:
        given = arrays("logits", "predicted_loss")
        given["predicted_loss"][[5, 9]] = np.inf
        with pytest.raises(UserError, match=r"^predicted_loss: must be finite in float32; row 5 is not$"):
            select("predicted_loss", 1, **given)


class TestNeeds:
    @pytest.mark.parametrize("name", AVAILABLE)
    def test_are_exactly_what_a_strategy_uses(self, name: str) -> None:
        needed = strategies()[name]
        assert needed
        assert len(select(name, 5, options=options(name), **arrays(*needed)).positions) == 5
        for argument in needed:
            others = arrays(*(other for other in needed if other != argument))
            with pytest.raises(MissingArguments, match=rf"^{name} needs {argument}: pass {argument}=") as refused:
                select(name, 5, options=options(name), **others)
            assert refused.value.arguments == (argument,)

    def test_are_named_all_at_once(self) -> None:
        with pytest.raises(UserError) as refused:
            select("badge", 5)
        assert str(refused.value) == "badge needs logits and embeddings: pass logits=[N, C] and embeddings=[N, D]"

    def test_depend_on_the_options(self) -> None:
        given = arrays("embeddings")
        with pytest.raises(UserError, match=r"^kmeans needs logits: pass logits=\[N, C\]$"):
            select("kmeans", 5, options={"weighted": True}, **given)
        with pytest.raises(UserError, match=r"^entropy needs embeddings: "):
            select("entropy", 5, options={"selector": "selective_clustering"}, **arrays("logits"))
        given["labeled_embeddings"] = given["embeddings"]
        assert len(select("probcover", 5, options={"delta": 0.1}, **given).positions) == 5

    def test_strategies_that_need_a_run_are_refused(self) -> None:
        refused = set(STRATEGIES) - set(strategies())
        assert {"vaal", "ta_vaal"} <= refused
        for name in refused:
            line = f"^{name} needs the images or networks of a run: choose query={name} in a run"
            for given in (arrays("logits"), run_arguments()):
                with pytest.raises(NeedsRun, match=line):
                    select(name, 5, **given)

    def test_other_networks_have_logits_alone(self) -> None:
        def by_old_embeddings(context: QueryContext, n: int, rng: torch.Generator) -> Selection:
            return Selection(ranked(context.previous.embedding.norm(dim=1), rng)[:n], torch.zeros(n))

        with pytest.raises(NeedsRun, match=r"^by_old_embeddings needs the images or networks of a run"):
            select(by_old_embeddings, 5, **arrays("previous_logits"))

    @pytest.mark.parametrize(
        "use",
        [
            *(len, list, lambda x: x.shape, lambda x: x.device, lambda x: x[0], lambda x: x + 1, lambda x: 1 - x),
            *(lambda x: torch.cat([torch.zeros(1), x]), lambda x: torch.zeros(1) @ x, lambda x: x.cpu().numpy()),
        ],
    )
    def test_any_use_of_a_missing_array_names_it(self, use: Any) -> None:
        with pytest.raises(MissingArgument) as missing:
            use(missing_tensor("embeddings"))
        assert missing.value.argument == "embeddings"


class TestOptions:
    @pytest.mark.parametrize("name", STRATEGIES)
    def test_have_the_defaults_of_a_run(self, name: str) -> None:
        assert described(build_strategy(name, {})) == described(instantiate(composed(f"query={name}").query))

    def test_are_those_of_a_run(self) -> None:
        given = {"selector": "power", "selector.beta": 2, "scorer": "bald", "scorer.samples": 7, "subset": 50}
        overrides = ("query/selector=power", "query/scorer=bald", "query.selector.beta=2.0", "query.scorer.samples=7")
        in_a_run = instantiate(composed("query=entropy", *overrides, "query.subset=50").query)
        assert described(build_strategy("entropy", given)) == described(in_a_run)

    @pytest.mark.parametrize(
        ("name", "given", "line"),
        [
            ("bagde", {}, r"query=bagde: no such option; did you mean badge\? \(known: .*badge, badge_h.*, bait, "),
            ("bait", {"subst": 5}, r"query.subst=5: no such key; did you mean subset\? \(known: .*oversample, regul"),
            ("badge", {"subset": 5}, r"query.subset=5: no such key; badge has no options$"),
            ("bait", {"subset": 0}, r"query.subset=0: must be greater than or equal to 1$"),
            ("bald", {"scorer.samples": "few"}, r"query.scorer.samples=few: must be a valid integer$"),
            ("entropy", {"selector": "powr"}, r"query/selector=powr: no such option; did you mean power\? "),
            ("badge", {"selector": "power"}, r"query.selector=power: no such key; badge has no options$"),
            ("margin", {"selector": "power"}, r"query/selector=power draws in proportion to the scores: "),
        ],
    )  # fmt: skip
    def test_that_are_wrong_are_refused_in_one_line(self, name: str, given: dict[str, Any], line: str) -> None:
        with pytest.raises(UserError, match=f"^{line}"):
            select(name, 5, options=given, **arrays("logits", "embeddings", "head"))

    def test_limits_of_a_large_pool_are_those_of_a_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        given = arrays("embeddings", "labeled_embeddings", "num_classes")
        monkeypatch.setattr(large_pools, "LARGE", 10)
        with pytest.raises(UserError, match=r"^query.subset=null: must be a number for probcover with 40 unlabeled"):
            select("probcover", 5, **given)
        assert len(select("probcover", 5, options={"subset": 10}, **given).positions) == 5


def described(value: Any) -> Any:
    """A strategy as plain values: functions by name, with their arguments."""
    if isinstance(value, partial):
        return value.func.__qualname__, described(value.keywords)
    return {key: described(part) for key, part in value.items()} if isinstance(value, Mapping) else value


def test_the_import_needs_neither_hydra_nor_wandb() -> None:
    code = (
        "import sys, numpy as np; from sslpl.select import select, strategies; "
        "print(len(select('badge', 2, logits=np.eye(5), embeddings=np.eye(5)).positions), len(strategies()) > 20); "
        "print([name for name in ('hydra', 'omegaconf', 'wandb', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["2 True", "[]"], done.stderr


class TestCommand:
    @pytest.fixture
    def command(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
        """Runs the command in this process, in a folder with files of arrays; returns exit code, output and errors."""
        monkeypatch.chdir(tmp_path)
        given = arrays(*SHAPES)
        del given["probabilities"]
        labeled = {name.removeprefix("labeled_"): given.pop(name) for name in list(SHAPES) if SHAPES[name][0] == "L"}
        np.savez("pool.npz", **given)
        np.savez("labeled.npz", **labeled)

        def run_command(line: str) -> tuple[int, str, str]:
            monkeypatch.setattr("sys.argv", ["select", *shlex.split(line)])
            code = 0
            try:
                runpy.run_module("sslpl.select", run_name="__main__")
            except SystemExit as ended:
                code = int(ended.code or 0)
            out, err = capsys.readouterr()
            return code, out, err

        return run_command

    @pytest.mark.parametrize(
        ("name", "line", "given"),
        [
            ("badge", "n=5", {}),
            ("bait", "n=5 query.regularization=1e-2 query.subset=20 seed=2 --labeled labeled.npz",
             {"options": {"regularization": 0.01, "subset": 20}, "seed": 2}),
            ("bald", "n=5 query/selector=power query.selector.beta=2 cycle=3",
             {"options": {"selector": "power", "selector.beta": 2.0}, "cycle": 3}),
            ("selective_clustering", "n=5 budget.candidates=12", {"candidates": 12}),
            ("probcover", "--labeled labeled.npz n=5 num_classes=4 query.delta=null", {}),
            ("query_by_committee", "n=5 query.scorer.disagreement=vote_entropy",
             {"options": {"scorer.disagreement": "vote_entropy"}}),
        ],
    )  # fmt: skip
    def test_writes_what_select_returns(self, command: Any, name: str, line: str, given: dict[str, Any]) -> None:
        code, out, err = command(f"query={name} {line} pool.npz --output picks.csv")
        assert (code, out, err) == (0, "5 rows: picks.csv\n", "")
        header, *rows = Path("picks.csv").read_text().splitlines()
        expected = select(name, 5, **arrays(*strategies()[name]), **given)
        assert header == "position,score"
        assert [int(row.split(",")[0]) for row in rows] == expected.positions.tolist()
        scores = [float(row.split(",")[1] or "nan") for row in rows]
        assert np.array_equal(scores, expected.scores, equal_nan=True)

    def test_reads_what_predict_writes(self, command: Any) -> None:
        given = arrays("logits", "probabilities", "embeddings")
        losses = np.full(SIZES["N"], np.nan, np.float32)
        paths = [f"photos/{number}.png" for number in range(SIZES["N"])]
        predicted = FilePredictions([Path(path) for path in paths], given["logits"], given["probabilities"], losses,
                                    given["embeddings"])  # fmt: skip
        Path("predictions.npz").write_bytes(predictions_npz(predicted, tuple("abcd"), paths))
        code, out, err = command("query=badge n=3 predictions.npz")
        rows = select("badge", 3, logits=given["logits"], embeddings=given["embeddings"]).positions.tolist()
        assert (code, err) == (0, "")
        assert out.splitlines() == ["position,score,path", *(f"{row},,{paths[row]}" for row in rows)]
        code, _, err = command("query=predicted_loss n=3 predictions.npz")
        assert (code, err) == (2, "sslpl: predicted_loss needs predicted_loss [N] in the pool's .npz file\n")

    def test_lists_the_strategies_with_their_needs(self, command: Any) -> None:
        code, out, _ = command("--list")
        assert code == 0
        lines = dict(re.split(r"  +", line) for line in out.splitlines())
        assert lines == {name: ", ".join(needed) for name, needed in strategies().items()}

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("query=core_set n=3 pool.npz", "core_set needs embeddings [L, D] in the file of --labeled"),
            ("query=badge n=3", "badge needs logits [N, C] and embeddings [N, D] in the pool's .npz file"),
            ("query=bait n=3", "bait needs logits [N, C] and embeddings [N, D] in the pool's .npz file, and "
             "logits [L, C] and embeddings [L, D] in the file of --labeled"),
            ("query=random n=3", "random needs num_unlabeled=N"),
            ("query=bald n=3 bare.npz", "bald needs head_weight [C, D] and head_bias [C] in the pool's .npz file"),
            ("n=3 pool.npz", "query: must be given, as in query=badge n=100 pool.npz"),
            ("query=badge pool.npz", "n: must be given, as in query=badge n=100 pool.npz"),
            ("query=badge n=3 cylce=2 pool.npz",
             "cylce=2: no such key; did you mean cycle? (known: budget.candidates, "
             "cycle, cycles, n, num_classes, num_unlabeled, query, query/scorer, query/selector, seed)"),
            ("query=badge n=few pool.npz", "n=few: must be a valid integer"),
            ("query=badge n=[ pool.npz", "n=[: must be a number, true, false, null or a word"),
            ("query=badge n=3 pool.npz labeled.npz", "pool.npz labeled.npz: must be one .npz file, that of the pool"),
            ("query=badge n=3 absent.npz", "absent.npz: cannot be read (No such file or directory)"),
            ("query=badge n=3 text.npz", "text.npz: must be an .npz file, as numpy.savez writes it"),
            ("query=badge n=3 damaged.npz", "damaged.npz: cannot be read (Bad CRC-32 for file 'logits.npy')"),
            ("query=badge n=3 objects.npz",
             "objects.npz: cannot be read (Object arrays cannot be loaded when allow_pickle=False)"),
            ("query=badge n=3 one.npy", "one.npy: must be an .npz file, as numpy.savez writes it"),
            ("query=badge n=3 other.npz", "other.npz: has none of the arrays logits, probabilities, embeddings, "
             "predicted_loss, previous_logits, committee_logits, hidden_labels, head_weight, head_bias, paths"),
            ("query=badge n=3 paths.npz", "paths.npz: paths must have one entry per row, not 2"),
            ("query=badge n=3 pool.npz --output pool.npz/x", "--output pool.npz/x: cannot be written (File exists)"),
            ("query=vaal n=3 pool.npz", "vaal needs the images or networks of a run: choose query=vaal in a run, or "
             "here one of the strategies that work on arrays (python -m sslpl.select --list)"),
        ],
    )  # fmt: skip
    def test_bad_input_ends_with_one_line(self, command: Any, line: str, message: str) -> None:
        given = arrays("logits", "embeddings")
        np.savez("bare.npz", **given)
        np.savez("other.npz", images=given["logits"])
        np.savez("paths.npz", paths=np.array(["a", "b"]), **given)
        np.save("one.npy", given["logits"])
        np.savez("objects.npz", logits=np.array([object()]))
        content = Path("bare.npz").read_bytes()
        Path("damaged.npz").write_bytes(content[:400] + bytes([content[400] ^ 255]) + content[401:])
        Path("text.npz").write_text("a,b\n")
        assert command(line) == (2, "", f"sslpl: {message}\n")

    @pytest.mark.parametrize("line", starting("python -m sslpl.select"))
    def test_the_documented_commands_work(self, command: Any, line: str) -> None:
        generator = np.random.default_rng(0)
        sizes = SIZES | {"N": 150, "C": 10}
        given = {name: generator.random(tuple(sizes[size] for size in shape)) for name, shape in SHAPES.items()}
        pool = {name: given[name] for name in ("logits", "embeddings", "predicted_loss")}
        np.savez("pool.npz", **pool)
        np.savez("labeled.npz", embeddings=given["labeled_embeddings"], logits=given["labeled_logits"])
        Path("predictions").mkdir()
        np.savez("predictions/predictions.npz", paths=np.array([f"{row}.png" for row in range(150)]), **pool)
        code, out, err = command(line.partition("sslpl.select")[2])
        assert (code, err) == (0, "")
        assert out


class TestGuide:
    @pytest.mark.parametrize("block", range(len(code("docs/select.md", "python"))))
    def test_every_example_runs(self, block: int, capsys: pytest.CaptureFixture[str]) -> None:
        example = code("docs/select.md", "python")[block]
        assert len(example.splitlines()) <= 20
        exec(example, {})
        assert capsys.readouterr().out

    def test_the_loop_learns(self, capsys: pytest.CaptureFixture[str]) -> None:
        exec(code("docs/select.md", "python")[0], {})
        accuracies = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
        assert accuracies[-1] > accuracies[0] + 0.05

    def test_the_table_names_every_strategy_with_its_needs(self) -> None:
        text = (CONF.parent / "docs" / "select.md").read_text()
        rows = re.findall(r"^\| (`[a-z_`, ]+`) \| (`[a-z_`, ]+`) \|$", text, flags=re.MULTILINE)
        words = [(re.findall(r"\w+", needed), re.findall(r"\w+", names)) for needed, names in rows]
        assert {name: tuple(needed) for needed, names in words for name in names} == strategies()
