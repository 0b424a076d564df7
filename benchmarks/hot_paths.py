"""Benchmarks of the hot paths, each as a run executes it: our implementation and the conventional one."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import conventional
from benchmarks.measure import Case, Row, compare, timed
from benchmarks.setups import BenchmarkOptions, calibrate, half_confident, make_setup, synthetic, synthetic_embeddings
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

UNLIMITED = 10**6  # epochs: a benchmark takes steps of a phase and never finishes it


def run_case(name: str, bench: BenchmarkOptions, case: Case) -> Row:
    """Runs a case with the device and repetitions of the command line."""
    return compare(name, case, bench.device, bench.repeats)


def augment_weak(bench: BenchmarkOptions) -> Row:
    """Measures weak augmentation of a batch, ready for the network."""
    return augment("augment_weak", bench, strong=False)


def augment_pair(bench: BenchmarkOptions) -> Row:
    """Measures a weak and a strong view of each image of a batch, ready for the network."""
    return augment("augment_pair", bench, strong=True)


def augment(name: str, bench: BenchmarkOptions, strong: bool) -> Row:
    """Measures loading and augmenting a batch, with the random draws."""
    count = bench.sizes.augmented
    setup = make_setup(synthetic(4 * count, 8, 10), bench.device, Training(), Budget(8, 8, 2, 8))
    images, augmentation, dataset = setup.dataset.train, setup.augmentation, setup.dataset
    generator = torch.Generator().manual_seed(0)

    def ours() -> tuple[Tensor, ...]:
        index = torch.randperm(len(images), generator=generator)[:count]
        batch = next(iter(images.batches([index])))
        views = (augmentation.weak(batch, augmentation.draw_weak(count, generator)),)
        if strong:
            views += (augmentation.strong(batch, augmentation.draw_strong(count, generator)),)
        return views

    transform = conventional.pair(dataset) if strong else conventional.weak(dataset)
    pil = conventional.PilImages(images.data, dataset.train_labels, transform)
    loader = conventional.shuffled_loader(pil, range(count), count)

    def baseline() -> tuple[Tensor, ...]:
        views, _labels = next(iter(loader))
        return tuple(view.to(bench.device) for view in (views if strong else [views]))

    def extra(row: Row, mine: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> Row:
        assert [(x.shape, x.dtype) for x in mine] == [(x.shape, x.dtype) for x in theirs]
        return throughput(row, count)

    return run_case(name, bench, Case(ours, baseline, (20, 1), 9, extra=extra))


def throughput(row: Row, images: int) -> Row:
    """Returns images per second of both implementations."""
    rates = {"images_per_second": images / row["ours_seconds"]}
    if row["baseline_seconds"] is not None:
        rates["baseline_images_per_second"] = images / row["baseline_seconds"]
    return rates


def joint_step(bench: BenchmarkOptions) -> Row:
    """Measures one step of joint training, with augmentation on both sides."""
    size, cuda = bench.sizes.batch, bench.device.type == "cuda"
    steps = 64 if cuda else 4  # an epoch: on a GPU, with its share of the work done once per epoch
    dataset = synthetic(size * steps, 8, 100)
    training = Training(epochs=UNLIMITED, batch_size=size, trim=False)
    setup = make_setup(dataset, bench.device, training, Budget(size * steps, 1, 1, 1.0))
    ours = next_step(train(setup, initial_state(setup)))
    trainer = conventional.Trainer(*conventional.build_networks(setup), training, bench.device)
    trainer.start_epoch(0)
    batches = repeat_epochs(
        conventional.shuffled_loader(pil_images(setup, conventional.weak(dataset)), range(size * steps), size)
    )

    def baseline() -> None:
        trainer.joint_step(*next(batches), detached=False)

    def extra(row: Row, _ours: object, _baseline: object) -> Row:
        alone, _ = timed(lambda: next(batches), steps, bench.device)
        return throughput(row, size) | {"baseline_augmentation_seconds": alone} | hardware_utilization(setup, row, size)

    return run_case("joint_step", bench, Case(ours, baseline, (steps, steps) if cuda else (1, 1), 7, extra=extra))


def next_step(steps: Iterator[object]) -> Callable[[], object]:
    """Returns a function that takes the next step of a phase."""
    return lambda: next(steps)


def repeat_epochs(loader: torch.utils.data.DataLoader) -> Iterator[list]:
    """Yields the batches of one epoch after another, without end."""
    while True:
        yield from loader


def pil_images(setup: Setup, transform: conventional.Transform) -> conventional.PilImages:
    """Returns the pool of a setup as PIL images."""
    return conventional.PilImages(setup.dataset.train.data, setup.dataset.train_labels, transform)


def hardware_utilization(setup: Setup, row: Row, size: int) -> Row:
    """Returns the operations per second of a step, and their share of the rate of a large matrix product."""
    backbone, _ = setup.build(0)
    images = torch.zeros(2, *setup.dataset.train.shape, device=setup.device)
    with FlopCounterMode(display=False) as counter:
        backbone(images).logits.sum().backward()
    achieved = counter.get_total_flops() / 2 * size / row["ours_seconds"]
    dtype = torch.bfloat16 if setup.bfloat16 else torch.float32
    side = 8192 if setup.device.type == "cuda" else 2048
    matrix = torch.randn(side, side, device=setup.device).to(dtype)
    timed(lambda: matrix @ matrix, 3, setup.device)
    seconds, _ = timed(lambda: matrix @ matrix, 20, setup.device)
    peak = 2 * side**3 / seconds
    return {"tflops": achieved / 1e12, "ceiling_tflops": peak / 1e12, "ceiling_share": achieved / peak}


def finetune_step(bench: BenchmarkOptions) -> Row:
    """Measures one step of the fine-tune, half of whose unlabeled images are confident, with augmentation."""
    size, many, cuda = bench.sizes.batch, bench.sizes.unlabeled, bench.device.type == "cuda"
    steps = 32 if cuda else 1
    # Enough unlabeled images that `unlabeled_batch_size` gives `many` to each step of an epoch.
    dataset = synthetic(size * steps + many * (steps + 1), 8, 100)
    training = Training(finetune_epochs=UNLIMITED, batch_size=size, unlabeled_batch_limit=many)
    budget = Budget(size * steps, 1, 1, 1.0)
    setup = make_setup(dataset, bench.device, training, budget, ssl=half_confident)
    state = initial_state(setup)
    state.enter("finetune")
    calibrate(setup, state.backbone)
    trainer = conventional.Trainer(*conventional.build_networks(setup), training, bench.device)
    trainer.backbone.load_state_dict(state.backbone.state_dict())
    trainer.start_finetune()
    labeled, unlabeled = state.pool.labeled.tolist(), state.pool.unlabeled.tolist()
    batches = repeat_epochs(conventional.shuffled_loader(pil_images(setup, conventional.weak(dataset)), labeled, size))
    pairs = repeat_epochs(
        conventional.shuffled_loader(pil_images(setup, conventional.pair(dataset)), unlabeled[: many * steps], many)
    )

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

    ours = next_step(finetune(setup, state))
    return run_case("finetune_step", bench, Case(ours, baseline, (steps, steps), 4, extra=extra))


def module_step(bench: BenchmarkOptions) -> Row:
    """Measures a forward and backward pass of the loss prediction module alone, on given stage outputs.

    Without gradient to the stages, as in the fine-tune; the keys `..._with_gradient` are with it, as in joint training.
    """
    count = bench.sizes.batch + bench.sizes.unlabeled
    setup = make_setup(synthetic(max(count, 256), 8, 100), bench.device, Training(), Budget(8, 8, 2, 8))
    backbone, module = setup.build(0)
    calibrate(setup, backbone)
    convolved = conventional.ConventionalModule(setup.build(0)[1])
    images = setup.augmentation.normalize(next(iter(setup.dataset.train.batches([torch.arange(count)]))))
    with torch.no_grad():
        maps = FrozenBackbone(backbone, setup.bfloat16)(images).maps
        float_maps = [stage.contiguous() for stage in backbone.eval()(images).maps]
        exact, ours = convolved(float_maps[:]), module(float_maps)
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
    row = run_case("module_step", bench, Case(step(module, maps, False), step(convolved, float_maps, False), calls, 9))
    both = Case(step(module, maps, True), step(convolved, float_maps, True), calls, 9)
    other = run_case("with_gradient", bench, both)
    keys = ("baseline_seconds", "ours_seconds", "ratio")
    return row | throughput(row, count) | {f"{key}_with_gradient": other[key] for key in keys}


def clustering(name: str, bench: BenchmarkOptions, points: int, repeats: int) -> Row:
    """Measures complete linkage of embeddings into a tenth as many clusters."""
    count = int(points * bench.sizes.linkage_share)
    array = synthetic_embeddings(count)
    tensor = torch.from_numpy(array).to(bench.device)

    def extra(_row: Row, mine: Tensor, theirs: object) -> Row:
        return {"adjusted_rand_index": float(adjusted_rand_score(theirs, mine.cpu().numpy())), "points": count}

    case = Case(
        lambda: complete_linkage(tensor, count // 10),
        lambda: conventional.complete_linkage(array, count // 10),
        repeats=repeats,
        warm_up=False,
        extra=extra,
    )
    return run_case(name, bench, case)


def clustering_10000(bench: BenchmarkOptions) -> Row:
    """Measures the clustering of 10,000 points into 1,000 clusters."""
    return clustering("clustering_10000", bench, 10_000, 2)


def clustering_25000(bench: BenchmarkOptions) -> Row:
    """Measures the clustering of 25,000 points into 2,500 clusters, as in a query of the published protocol."""
    return clustering("clustering_25000", bench, 25_000, 2)


def pool_scoring(bench: BenchmarkOptions) -> Row:
    """Measures the prediction of logits, embeddings and losses of a pool."""
    count = bench.sizes.scored * (16 if bench.device.type == "cuda" else 1)
    dataset = synthetic(count, 8, 100)
    setup = make_setup(dataset, bench.device, Training(), Budget(8, 8, 2, 8))
    backbone, module = setup.build(0)
    calibrate(setup, backbone)
    their_backbone, convolved = conventional.build_networks(setup)
    their_backbone.load_state_dict(backbone.state_dict())
    loader = conventional.ordered_loader(pil_images(setup, conventional.normalize(dataset)), range(count))
    index = torch.arange(count)
    case = Case(
        lambda: predict(setup, backbone, module, setup.dataset.train, index),
        lambda: conventional.predictions(their_backbone, convolved, loader, bench.device),
        repeats=3,
        extra=lambda row, _ours, _baseline: throughput(row, count),
    )
    return run_case("pool_scoring", bench, case)


def scaling(bench: BenchmarkOptions) -> Row:
    """Measures how the time and memory of a query (without predictions) grow with the candidates; ours only."""
    sizes = [int(thousands * 1000 * bench.sizes.linkage_share) for thousands in (5, 10, 15, 20, 25)]
    points = []
    for count in sizes:
        embedding = torch.from_numpy(synthetic_embeddings(count)).to(bench.device)
        score = torch.rand(count, generator=torch.Generator().manual_seed(0)).to(bench.device)

        def query(score: Tensor = score, embedding: Tensor = embedding, count: int = count) -> Tensor:
            return selective_clustering(score, embedding, count // 10, count, torch.Generator().manual_seed(0))

        row = run_case("scaling", bench, Case(query, None, repeats=3, warm_up=False))
        points.append({"candidates": count, "seconds": row["ours_seconds"], "peak_mib": row["ours_peak_mib"]})
    exponents = {f"{key}_exponent": slope(points, key) for key in ("seconds", "peak_mib")}
    return row | exponents | {"by_candidates": points}


def slope(points: list[dict[str, float]], key: str) -> float:
    """Returns the growth exponent of a figure: the slope of a line fitted to the logarithms."""
    x, y = (torch.tensor([float(point[name]) for point in points]).double().log() for name in ("candidates", key))
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())
