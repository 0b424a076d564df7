"""The hot paths one by one, each as it runs inside of a run: ours and the conventional way."""

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import conventional as old
from benchmarks.measure import Case, Row, measured, timed
from benchmarks.parts import Bench, calibrate, embeddings, half_confident, setup_of, synthetic
from sslpl.budget import Budget
from sslpl.clustering.linkage import complete_linkage
from sslpl.learn.inference import predict
from sslpl.loop import initial_state
from sslpl.models.frozen import FrozenBackbone
from sslpl.phases.finetune import finetune
from sslpl.phases.train import train
from sslpl.query.selective_clustering import selective_clustering
from sslpl.ranking import bce_ranking_loss
from sslpl.setup import Setup
from sslpl.training import Training

ENDLESS = 10**6  # epochs: the phases are generators of steps, and a benchmark takes as many as it wants


def run_case(name: str, bench: Bench, case: Case) -> Row:
    """Measures a case on the device with the repetitions asked for."""
    return measured(name, case, bench.device, bench.repeats)


def augment_weak(bench: Bench) -> Row:
    """Weak views of a batch, ready for the network."""
    return augment("augment_weak", bench, strong=False)


def augment_pair(bench: Bench) -> Row:
    """A weak and a strong view of each image of a batch, ready for the network."""
    return augment("augment_pair", bench, strong=True)


def augment(name: str, bench: Bench, strong: bool) -> Row:
    """Fetches and augments a batch, draws included."""
    count = bench.sizes.augmented
    setup = setup_of(synthetic(4 * count, 8, 10), bench.device, Training(), Budget(8, 8, 2, 8))
    images, augmentation, dataset = setup.dataset.train, setup.augmentation, setup.dataset
    generator = torch.Generator().manual_seed(0)

    def ours() -> tuple[Tensor, ...]:
        index = torch.randperm(len(images), generator=generator)[:count]
        batch = next(iter(images.batches([index])))
        views = (augmentation.weak(batch, augmentation.draw_weak(count, generator)),)
        if strong:
            views += (augmentation.strong(batch, augmentation.draw_strong(count, generator)),)
        return views

    transform = old.pair(dataset) if strong else old.weak(dataset)
    pil = old.PilImages(images.data, dataset.train_labels, transform)
    loader = old.shuffled_loader(pil, range(count), count)

    def baseline() -> tuple[Tensor, ...]:
        views, _labels = next(iter(loader))
        return tuple(view.to(bench.device) for view in (views if strong else [views]))

    def extra(row: Row, mine: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> Row:
        assert [(x.shape, x.dtype) for x in mine] == [(x.shape, x.dtype) for x in theirs]
        return throughput(row, count)

    return run_case(name, bench, Case(ours, baseline, (20, 1), 9, extra=extra))


def throughput(row: Row, images: int) -> Row:
    """Images a second, both ways."""
    rates = {"images_per_second": images / row["ours_seconds"]}
    if row["baseline_seconds"] is not None:
        rates["baseline_images_per_second"] = images / row["baseline_seconds"]
    return rates


def joint_step(bench: Bench) -> Row:
    """One step of joint training; augmentation counts on both sides."""
    size, cuda = bench.sizes.batch, bench.device.type == "cuda"
    steps = 64 if cuda else 4  # an epoch: on a GPU what is done for an epoch at once is measured with it
    dataset = synthetic(size * steps, 8, 100)
    training = Training(epochs=ENDLESS, batch_size=size, trim=False)
    setup = setup_of(dataset, bench.device, training, Budget(size * steps, 1, 1, 1.0))
    ours = steps_of(train(setup, initial_state(setup)))
    trainer = old.Trainer(*old.networks(setup), training, bench.device)
    trainer.start_epoch(0)
    batches = endless(old.shuffled_loader(pil(setup, old.weak(dataset)), range(size * steps), size))

    def baseline() -> None:
        trainer.joint_step(*next(batches), detached=False)

    def extra(row: Row, _ours: object, _baseline: object) -> Row:
        alone, _ = timed(lambda: next(batches), steps, bench.device)
        return throughput(row, size) | {"baseline_augmentation_seconds": alone} | ceiling(setup, row, size)

    return run_case("joint_step", bench, Case(ours, baseline, (steps, steps) if cuda else (1, 1), 7, extra=extra))


def steps_of(steps: Iterator[object]):
    """The next step of a phase, as a function."""
    return lambda: next(steps)


def endless(loader: torch.utils.data.DataLoader) -> Iterator[list]:
    """The batches of one epoch after the other."""
    while True:
        yield from loader


def pil(setup: Setup, transform: old.Transform) -> old.PilImages:
    """The pool of a setup as PIL images."""
    return old.PilImages(setup.dataset.train.data, setup.dataset.train_labels, transform)


def ceiling(setup: Setup, row: Row, size: int) -> Row:
    """What a step makes of the device: operations a second, and their share of a large matrix product's."""
    backbone, _ = setup.build(0)
    images = torch.zeros(2, *setup.dataset.train.shape, device=setup.device)
    with FlopCounterMode(display=False) as counter:
        backbone(images).logits.sum().backward()
    reached = counter.get_total_flops() / 2 * size / row["ours_seconds"]
    dtype = torch.bfloat16 if setup.bfloat16 else torch.float32
    side = 8192 if setup.device.type == "cuda" else 2048
    matrix = torch.randn(side, side, device=setup.device).to(dtype)
    timed(lambda: matrix @ matrix, 3, setup.device)
    seconds, _ = timed(lambda: matrix @ matrix, 20, setup.device)
    most = 2 * side**3 / seconds
    return {"tflops": reached / 1e12, "ceiling_tflops": most / 1e12, "ceiling_share": reached / most}


def finetune_step(bench: Bench) -> Row:
    """One step of the fine-tune, half of the unlabeled images confident; augmentation counts on both sides."""
    size, many, cuda = bench.sizes.batch, bench.sizes.unlabeled, bench.device.type == "cuda"
    steps = 32 if cuda else 1
    # So many unlabeled images that each of an epoch's steps gets `many`, as `unlabeled_batch_size` reckons.
    dataset = synthetic(size * steps + many * (steps + 1), 8, 100)
    training = Training(finetune_epochs=ENDLESS, batch_size=size, unlabeled_batch_limit=many)
    budget = Budget(size * steps, 1, 1, 1.0)
    setup = setup_of(dataset, bench.device, training, budget, ssl=half_confident)
    state = initial_state(setup)
    calibrate(setup, state.backbone)
    trainer = old.Trainer(*old.networks(setup), training, bench.device)
    trainer.backbone.load_state_dict(state.backbone.state_dict())
    trainer.start_finetune()
    labeled, unlabeled = state.pool.labeled.tolist(), state.pool.unlabeled.tolist()
    batches = endless(old.shuffled_loader(pil(setup, old.weak(dataset)), labeled, size))
    pairs = endless(old.shuffled_loader(pil(setup, old.pair(dataset)), unlabeled[: many * steps], many))

    def baseline() -> int:
        return trainer.finetune_step(*next(batches), next(pairs)[0], None)

    def extra(_row: Row, _ours: object, confident: int) -> Row:
        alone, _ = timed(lambda: (next(batches), next(pairs)), 1, bench.device)
        kept, _, seen = state.sums[3:].tolist()
        return {
            "baseline_augmentation_seconds": alone,
            "confident": kept / seen,
            "baseline_confident": confident / many,
        }

    ours = steps_of(finetune(setup, state))
    return run_case("finetune_step", bench, Case(ours, baseline, (steps, steps), 4, extra=extra))


def module_step(bench: Bench) -> Row:
    """The loss prediction module alone, forward and backward, on given stage outputs as each side has them.

    Without gradient to the stages, as in the fine-tune; `..._with_gradient` are with it, as in joint training.
    """
    count = bench.sizes.batch + bench.sizes.unlabeled
    setup = setup_of(synthetic(max(count, 256), 8, 100), bench.device, Training(), Budget(8, 8, 2, 8))
    backbone, module = setup.build(0)
    calibrate(setup, backbone)
    convolved = old.Convolved(setup.build(0)[1])
    images = setup.augmentation.normalize(next(iter(setup.dataset.train.batches([torch.arange(count)]))))
    with torch.no_grad():
        maps = FrozenBackbone(backbone, setup.bfloat16)(images).maps
        plain_maps = [stage.contiguous() for stage in backbone.eval()(images).maps]
        exact, ours = convolved(plain_maps[:]), module(plain_maps)
        assert torch.allclose(exact, ours, rtol=1e-3, atol=1e-4 * float(exact.abs().max())), "the modules differ"
    del backbone
    losses = torch.rand(count, device=bench.device)

    def step(network: torch.nn.Module, stages: list[Tensor], gradient: bool):
        leaves = [stage.clone(memory_format=torch.preserve_format).requires_grad_(gradient) for stage in stages]

        def call() -> None:
            for leaf in (*leaves, *network.parameters()):
                leaf.grad = None
            with setup.autocast() if network is module and gradient else nullcontext():  # as in joint training
                predicted = network(leaves)
            bce_ranking_loss(predicted, losses).backward()

        return call

    calls = (5, 1)
    row = run_case("module_step", bench, Case(step(module, maps, False), step(convolved, plain_maps, False), calls, 9))
    both = Case(step(module, maps, True), step(convolved, plain_maps, True), calls, 9)
    other = run_case("with_gradient", bench, both)
    keys = ("baseline_seconds", "ours_seconds", "ratio")
    return row | throughput(row, count) | {f"{key}_with_gradient": other[key] for key in keys}


def clustering(name: str, bench: Bench, points: int, repeats: int) -> Row:
    """Complete linkage of embeddings into a tenth as many clusters."""
    count = int(points * bench.sizes.linkage_share)
    array = embeddings(count)
    tensor = torch.from_numpy(array).to(bench.device)

    def extra(_row: Row, mine: Tensor, theirs: object) -> Row:
        return {"adjusted_rand_index": float(adjusted_rand_score(theirs, mine.cpu().numpy())), "points": count}

    case = Case(
        lambda: complete_linkage(tensor, count // 10),
        lambda: old.clustered(array, count // 10),
        repeats=repeats,
        warm_up=False,
        extra=extra,
    )
    return run_case(name, bench, case)


def clustering_10000(bench: Bench) -> Row:
    """10,000 points into 1,000 clusters."""
    return clustering("clustering_10000", bench, 10_000, 2)


def clustering_25000(bench: Bench) -> Row:
    """25,000 points into 2,500 clusters: a query of the published protocol."""
    return clustering("clustering_25000", bench, 25_000, 2)


def pool_scoring(bench: Bench) -> Row:
    """Logits, embeddings and predicted losses of a pool."""
    count = bench.sizes.scored * (16 if bench.device.type == "cuda" else 1)
    dataset = synthetic(count, 8, 100)
    setup = setup_of(dataset, bench.device, Training(), Budget(8, 8, 2, 8))
    backbone, module = setup.build(0)
    calibrate(setup, backbone)
    their_backbone, convolved = old.networks(setup)
    their_backbone.load_state_dict(backbone.state_dict())
    loader = old.ordered_loader(pil(setup, old.plain(dataset)), range(count))
    index = torch.arange(count)
    case = Case(
        lambda: predict(setup, backbone, module, setup.dataset.train, index),
        lambda: old.predictions(their_backbone, convolved, loader, bench.device),
        repeats=3,
        extra=lambda row, _ours, _baseline: throughput(row, count),
    )
    return run_case("pool_scoring", bench, case)


def scaling(bench: Bench) -> Row:
    """Time and memory of a query, given the predictions, as the candidates grow; ours alone."""
    sizes = [int(thousands * 1000 * bench.sizes.linkage_share) for thousands in (5, 10, 15, 20, 25)]
    points = []
    for count in sizes:
        embedding = torch.from_numpy(embeddings(count)).to(bench.device)
        score = torch.rand(count, generator=torch.Generator().manual_seed(0)).to(bench.device)

        def query(score: Tensor = score, embedding: Tensor = embedding, count: int = count) -> Tensor:
            return selective_clustering(score, embedding, count // 10, count, torch.Generator().manual_seed(0))

        row = run_case("scaling", bench, Case(query, None, repeats=3, warm_up=False))
        points.append({"candidates": count, "seconds": row["ours_seconds"], "peak_mib": row["ours_peak_mib"]})
    exponents = {f"{key}_exponent": slope(points, key) for key in ("seconds", "peak_mib")}
    return row | exponents | {"by_candidates": points}


def slope(points: list[dict[str, float]], key: str) -> float:
    """The exponent with which a figure grows: the slope of a line through the logarithms."""
    x, y = (torch.tensor([float(point[name]) for point in points]).double().log() for name in ("candidates", key))
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())
