"""Several annotators: whom to ask again, which label their answers give, how far they agree, and runs with them."""

import csv
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY, Killed, Result, run_folder, timeless
from test_validation import setup_of
from test_variants import even, numbered

from sslpl.loop import initial_state
from sslpl.oracle.aggregation import annotations_of, checked_max_answers, consensus, dawid_skene, majority, needs_answer
from sslpl.oracle.agreement import annotator_kappa
from sslpl.oracle.crowd import CrowdOracle
from sslpl.recording import checkpoint
from sslpl.seeds import rng
from sslpl.types import Annotations, LabelRequest, Selection, UserError

Command = Callable[..., Result]
CROWD = (*TINY, "method=random", "oracle=crowd", "oracle.annotators=2", "oracle.people=4")


@pytest.mark.parametrize(
    ("answers", "asks"),
    [
        ([], True), ([1], True), ([1, 1], False), ([1, 2], True), ([1, 2, 2], False),
        ([1, 2, 3], True), ([1, 2, 3, 4], False),
    ],
)  # fmt: skip
def test_people_who_disagree_are_asked_again(answers: list[int], asks: bool) -> None:
    assert needs_answer(answers, annotators=2, max_answers=4) is asks


def test_one_answer_is_never_disputed() -> None:
    assert checked_max_answers(1, None) == 1
    assert checked_max_answers(2, None) == 3
    with pytest.raises(UserError, match=r"oracle\.max_answers=1: must be at least oracle\.annotators=2"):
        checked_max_answers(2, 1)


def test_the_majority_decides_and_the_first_answer_a_tie() -> None:
    answers = [(7, 0, 2), (7, 1, 0), (7, 2, 0), (3, 0, 1), (3, 1, 0), (5, 0, -2), (5, 1, -2), (5, 2, 1)]
    index, label = consensus(annotations_of(answers, ("a", "b", "c")), 3, "majority")
    assert index.tolist() == [3, 5, 7]
    assert label.tolist() == [1, -2, 0]


def test_a_step_of_dawid_and_skene_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # Image 0: a and b say 0; image 1: a and b say 1; image 2: a says 0, b says 1. From the shares of the votes, the
    # posteriors are [1, 0], [0, 1], [1/2, 1/2]. Then the classes are equally frequent; person a says 0 of class 0
    # always, and of class 1 in (1/2) of 1.5; person b says 1 of class 0 in (1/2) of 1.5, and of class 1 always.
    monkeypatch.setattr("sslpl.oracle.aggregation.MOST_ITERATIONS", 1)
    rows, people = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 0, 1, 0, 1])
    found = dawid_skene(rows, people, torch.tensor([0, 0, 1, 1, 0, 1]), 3, 2)
    # Image 0: class 0 with 1 x 2/3, class 1 with 1/3 x 0; image 2: 1 x 1/3 against 1/3 x 1.
    assert found[0].tolist() == pytest.approx([1, 0], abs=1e-9)
    assert found[1].tolist() == pytest.approx([0, 1], abs=1e-9)
    assert found[2].tolist() == pytest.approx([0.5, 0.5])


def simulated(images: int, classes: int, accuracies: list[float], seed: int = 0) -> tuple[torch.Tensor, Annotations]:
    """Returns true classes and the answers of everyone about every image."""
    truth = even(classes, images // classes)
    draws = torch.rand(images, len(accuracies), generator=rng(seed, "right"))
    other = torch.randint(1, classes, draws.shape, generator=rng(seed, "wrong"))
    given = torch.where(draws < torch.tensor(accuracies), truth[:, None], (truth[:, None] + other) % classes)
    answers = [(i, p, int(given[i, p])) for i in range(images) for p in range(len(accuracies))]
    return truth, annotations_of(answers, tuple(map(str, range(len(accuracies)))))


def test_dawid_and_skene_find_out_who_is_right() -> None:
    truth, annotations = simulated(600, 3, [0.95, 0.9, 0.4, 0.4, 0.4])
    by_vote, by_model = (
        (consensus(annotations, 3, how).label == truth).double().mean().item() for how in ("majority", "dawid_skene")
    )
    assert by_model > by_vote + 0.05
    assert by_model > 0.93


def test_dawid_and_skene_are_those_of_crowd_kit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslpl.oracle.aggregation.TOLERANCE", 0.0)
    monkeypatch.setattr("sslpl.oracle.aggregation.MOST_ITERATIONS", 30)
    kit, pandas = pytest.importorskip("crowdkit.aggregation"), pytest.importorskip("pandas")
    for seed in range(3):
        _, (index, person, label, _) = simulated(120, 3, [0.9, 0.7, 0.6, 0.5], seed)
        table = pandas.DataFrame({"task": index.numpy(), "worker": person.numpy(), "label": label.numpy()})
        theirs = kit.DawidSkene(n_iter=30, tol=-1.0).fit_predict_proba(table).sort_index()[[0, 1, 2]]
        ours = dawid_skene(index, person, label, 120, 3)
        assert ours.numpy() == pytest.approx(theirs.to_numpy(), abs=1e-6)


def test_two_people_have_the_kappa_of_cohen() -> None:
    # Of 10 images both say 0 of four and 1 of three; a says 0 and b 1 of one; a says 1 and b 0 of two: they agree on
    # 0.7; by chance on 0.5 x 0.6 + 0.5 x 0.4 = 0.5.
    pairs = [(0, 0)] * 4 + [(1, 1)] * 3 + [(0, 1)] + [(1, 0)] * 2
    answers = [(image, person, said) for image, pair in enumerate(pairs) for person, said in enumerate(pair)]
    assert annotator_kappa(annotations_of(answers, ("a", "b"))) == pytest.approx(0.4)
    shuffled = [answers[k] for k in torch.randperm(20, generator=rng(0, "order")).tolist()]
    assert annotator_kappa(annotations_of(shuffled, ("a", "b"))) == pytest.approx(0.4)


def test_more_people_have_the_kappa_of_fleiss() -> None:
    # Votes [3, 0], [0, 3], [2, 1]: agreements 1, 1, 1/3; shares 5/9 and 4/9, by chance 41/81.
    votes = [(0, 0, 0), (1, 1, 1), (0, 0, 1)]
    answers = [(image, person, said) for image, row in enumerate(votes) for person, said in enumerate(row)]
    chance = 41 / 81
    expected = (7 / 9 - chance) / (1 - chance)
    assert annotator_kappa(annotations_of(answers, ("a", "b", "c"))) == pytest.approx(expected)
    disputed = [*answers, (2, 3, 1), (9, 0, 0)]  # a further answer, and an image with a single one, do not count
    assert annotator_kappa(annotations_of(disputed, ("a", "b", "c", "d"))) == pytest.approx(expected)


def test_fleiss_kappa_is_that_of_statsmodels() -> None:
    inter_rater = pytest.importorskip("statsmodels.stats.inter_rater")
    _, annotations = simulated(60, 3, [0.8, 0.7, 0.6])
    table, _ = inter_rater.aggregate_raters(annotations.label.reshape(60, 3).numpy())
    assert annotator_kappa(annotations) == pytest.approx(inter_rater.fleiss_kappa(table))


def test_without_disagreement_or_second_answers_there_is_no_kappa() -> None:
    assert annotator_kappa(annotations_of([(0, 0, 1), (1, 0, 0)], ("a", "b"))) is None
    assert annotator_kappa(annotations_of([(0, 0, 1), (0, 1, 1)], ("a", "b"))) is None


def request_of(index: list[int], annotations: Annotations | None = None, seed: int = 0) -> LabelRequest:
    data, selection = numbered(even(4, 250), 4), Selection(torch.tensor(index), torch.zeros(len(index)))
    return LabelRequest(data, Path(), 1, selection, "random", data.class_names, None, seed, annotations)


def test_simulated_people_err_as_often_as_they_should() -> None:
    data = numbered(even(4, 250), 4)
    oracle = CrowdOracle(annotators=3, max_answers=3, people=3, accuracy=[0.9, 0.6, 0.3])
    hidden = oracle.prepare(data)
    assert bool((hidden.train_labels == -1).all())
    assert torch.equal(hidden.true_labels, data.train_labels)  # type: ignore[arg-type]
    answers = oracle(request_of(list(range(1000)))).annotations
    assert answers is not None
    for person, accuracy in enumerate([0.9, 0.6, 0.3]):
        right = (answers.label == data.train_labels[answers.index])[answers.person == person].double()
        assert len(right) == 1000
        assert abs(float(right.mean()) - accuracy) < 4 * math.sqrt(accuracy * (1 - accuracy) / 1000)


def test_a_confusion_matrix_is_followed() -> None:
    data, swap = (
        numbered(even(4, 250), 4),
        [[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.0, 1.0]],
    )
    oracle = CrowdOracle(annotators=1, people=2, confusion=swap)
    oracle.prepare(data)
    answers = oracle(request_of(list(range(1000)))).annotations
    assert answers is not None
    truth = data.train_labels[answers.index]
    assert answers.label[truth < 2].tolist() == (1 - truth[truth < 2]).tolist()
    assert abs(float((answers.label[truth == 2] == 2).double().mean()) - 0.5) < 0.13
    assert answers.label[truth == 3].tolist() == [3] * 250


def test_images_of_no_class_are_rejected_or_taken_for_another() -> None:
    data = numbered(even(4, 250), 4)
    data = data._replace(
        train_labels=torch.where(data.train_labels == 3, -2, data.train_labels), class_names=("a", "b", "c")
    )
    oracle = CrowdOracle(annotators=1, people=1, accuracy=0.7)
    oracle.prepare(data)
    request = request_of(list(range(1000)))._replace(class_names=data.class_names)
    answer = oracle(request)
    is_open = data.train_labels == -2
    assert abs(float((answer.label[is_open] == -2).double().mean()) - 0.7) < 0.12
    assert not bool((answer.label[~is_open] == -2).any())


def test_what_a_person_answers_depends_on_image_and_seed_alone() -> None:
    data, oracle = numbered(even(4, 250), 4), CrowdOracle(annotators=2, people=4, accuracy=0.5)
    oracle.prepare(data)

    def answers(index: list[int], seed: int = 0) -> set[tuple[int, int, int]]:
        asked = oracle.ask(index, 4, seed)
        return set(zip(*(column.tolist() for column in asked[:3]), strict=True))

    both = answers([3, 800, 41])
    assert answers([41]) | answers([800, 3]) == both
    assert answers(list(range(100)), 1) != answers(list(range(100)))
    people = [person for image, person, _ in answers(list(range(500))) if image == 0]
    assert len(set(people)) == len(people)


def test_later_answers_correct_earlier_labels() -> None:
    data = numbered(even(4, 250), 4)
    oracle = CrowdOracle(annotators=3, people=5, accuracy=[0.95, 0.95, 0.3, 0.3, 0.3], aggregate="dawid_skene")
    oracle.prepare(data)
    first = oracle(request_of(list(range(40))))
    second = oracle(request_of(list(range(40, 900)), first.annotations))
    assert second.earlier is not None
    assert second.earlier.index.tolist() == list(range(40))
    right = [(label == data.train_labels[:40]).double().mean().item() for label in (first.label, second.earlier.label)]
    assert right[1] > right[0]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["oracle.annotators=0"], "oracle.annotators=0: must be greater than or equal to 1"),
        (["oracle.people=2"], "oracle.people=2: must be at least 3"),
        (["oracle.max_answers=1"], "oracle.max_answers=1: must be at least oracle.annotators=2"),
        (["oracle.accuracy=1.5"], "oracle.accuracy=1.5: must be a number from 0 to 1, or a list"),
        (["oracle.accuracy=[0.5,0.6]"], "oracle.accuracy: must be a number or a list of oracle.people=4, lists 2"),
        (["oracle.confusion=[[0.5,0.5],[1,0]]"], "oracle.confusion: must be a matrix of 10 x 10 classes"),
        (["oracle.aggregate=mean"], "oracle.aggregate=mean: must be 'majority' or 'dawid_skene'"),
        (["dataset.label_noise=0.1"], "dataset.label_noise=0.1: must be 0.0 with oracle=crowd"),
        (["budget.initial_pool=balanced"], "budget.initial_pool=balanced: must be random or query with oracle=crowd"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(sslpl: Command, overrides: list[str], said: str) -> None:
    done = sslpl(*CROWD, *overrides)
    assert done.code == 2
    assert done.err.startswith(f"sslpl: {said}"), done.err
    assert done.err.count("\n") == 1


def test_a_run_with_a_crowd_pays_for_each_answer_and_survives_a_kill(
    sslpl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = ("oracle.accuracy=0.7", "dataset.open_set=0.2", "oracle.aggregate=dawid_skene")
    done = sslpl(*CROWD, *errors, "runtime.output_dir=whole")
    assert done.code == 0, done.err
    folder = run_folder(Path("whole"))
    rows = timeless(folder)
    with (folder / "labeling" / "annotations.csv").open() as file:
        answers = list(csv.DictReader(file))
    assert [int(row["labeled"]) for row in rows] == [24, 48, 72]
    assert int(rows[-1]["answers"]) == len(answers)
    assert 2 * 72 < len(answers) <= 3 * 72
    assert len({(answer["path"], answer["person"]) for answer in answers}) == len(answers)
    assert 0.2 < float(rows[-1]["annotator_kappa"]) < 0.9
    assert 0.5 < float(rows[-1]["label_accuracy"]) < 1

    saves, save = [], checkpoint.save

    def save_and_die(path: Path, state: object) -> None:
        save(path, state)
        saves.append(path)
        if len(saves) == 2:
            raise Killed

    monkeypatch.setattr(checkpoint, "save", save_and_die)
    with pytest.raises(Killed):
        sslpl(*CROWD, *errors, "runtime.output_dir=killed")
    monkeypatch.setattr(checkpoint, "save", save)
    assert sslpl(*CROWD, *errors, "runtime.output_dir=killed").code == 0
    assert timeless(run_folder(Path("killed"))) == rows


def test_a_dry_run_with_a_crowd_waits_for_nobody(sslpl: Command) -> None:
    done = sslpl(*CROWD, "runtime.dry_run=true")
    assert done.code == 0, done.err
    assert "people's labels" not in done.out
    setup = setup_of(*CROWD)
    assert not setup.has_unknown_labels
    assert initial_state(setup).phase == "start"


def test_ties_and_single_answers_need_no_second_class() -> None:
    assert majority(torch.tensor([0, 0, 1]), torch.tensor([1, 0, 1]), 2, 2).tolist() == [1, 1]
