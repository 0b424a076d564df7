"""The query strategies that train networks of their own: VAAL, TA-VAAL, UncertainGCN, CoreGCN."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from querying import context
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import normalize

from sslpl.clustering.k_center import k_center_greedy
from sslpl.data.images import TensorImages
from sslpl.models.vae import VAE, strided_layers
from sslpl.query.context import Context
from sslpl.query.core_gcn import core_gcn
from sslpl.query.graph_network import GCN, GraphRecipe, labeled_loss, propagated, similarity_graph, train_graph_network
from sslpl.query.ta_vaal import ta_vaal
from sslpl.query.uncertain_gcn import uncertain_gcn
from sslpl.query.vaal import vaal
from sslpl.query.vaal_training import (
    Condition,
    VAALNetworks,
    VAALRecipe,
    adversarial_loss,
    autoencoder_loss,
    discriminator_loss,
    labeled_logits,
    passes,
    training_rows,
    vae_loss,
)
from sslpl.types import Predictions, Selection

RECIPE = VAALRecipe(4, 2, 6, 4, 5, 5e-4, 2.0, 3.0, "mean")
GRAPH_RECIPE = GraphRecipe(5, 16, 0.3, 1e-3, 5e-4, 1.2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image_context(
    images: Tensor, labeled: Tensor, embedding: Tensor | None = None, losses: Tensor | None = None
) -> Context:
    """Returns a context over images, with predictions in inference mode as in a run."""
    preprocess = context().normalize
    size = len(images)

    def predict(weights: Any, index: Tensor) -> Predictions:
        with torch.inference_mode():
            points = preprocess(images).flatten(1) if embedding is None else embedding
            worth = torch.zeros(size) if losses is None else losses
            return Predictions(index, torch.zeros(len(index), 5), points[index].clone(), worth[index].clone())

    rest = torch.ones(size, dtype=torch.bool)
    rest[labeled] = False
    unlabeled = rest.nonzero()[:, 0]
    seen = context(size, len(labeled))
    return replace(seen, images=TensorImages(images), predict=predict, labeled=labeled, unlabeled=unlabeled)


def two_kinds(seed: int, size: int = 240, labeled: int = 40) -> tuple[Context, Tensor]:
    """Returns a context of images bright at the left or right, only left ones labeled, and a mask of the right ones.

    Of the unlabeled images 60% are right ones. The embeddings of these are spread, those of the others are not.
    """
    rng = seeded(seed)
    right = torch.arange(size) >= size // 2
    images = torch.randint(0, 120, (size, 1, 8, 8), generator=rng)
    images[~right, :, :, :4] += 120
    images[right, :, :, 4:] += 120
    noise = torch.rand(size, 16, generator=rng) * torch.where(right, 0.5, 0.05)[:, None]
    embedding = torch.eye(16)[right.long()] + noise
    known = torch.randperm(size // 2, generator=rng)[:labeled]
    return image_context(images.to(torch.uint8), known, embedding), right


def share(selection: Selection, wanted: Tensor) -> float:
    return wanted[selection.index].double().mean().item()


@pytest.mark.parametrize("seed", range(3))
def test_the_kind_that_is_not_labeled_is_picked(seed: int) -> None:
    seen, right = two_kinds(seed)
    short = {"steps": 40, "batch_size": 16, "width": 8}
    assert share(vaal(seen, 20, seeded(seed), **short), right) >= 0.9
    assert share(ta_vaal(seen, 20, seeded(seed), **short), right) >= 0.9
    assert share(uncertain_gcn(seen, 20, seeded(seed), steps=60), right) >= 0.9
    assert share(core_gcn(seen, 20, seeded(seed), steps=60), right) >= 0.9


@pytest.mark.parametrize("normalized", [False, True])
def test_ta_vaal_sees_predicted_losses(normalized: bool) -> None:
    images = torch.zeros(120, 1, 8, 8, dtype=torch.uint8)  # nothing to see in them
    high = torch.arange(120) % 2 == 1
    labeled = torch.arange(0, 60, 2)
    seen = image_context(images, labeled, losses=torch.where(high, 2.0, -2.0))
    picked = ta_vaal(seen, 20, seeded(), steps=60, batch_size=16, width=4, normalized=normalized)
    assert share(picked, high) == 1


def test_scores_are_probabilities_and_the_highest_are_picked() -> None:
    seen, _ = two_kinds(0)
    every = vaal(seen, 200, seeded(), steps=2, batch_size=8, width=4).score
    assert ((every >= 0) & (every <= 1)).all()
    assert every.tolist() == sorted(every.tolist(), reverse=True)


def test_a_score_does_not_depend_on_what_is_scored_beside() -> None:
    seen, _ = two_kinds(0)
    index, nothing = torch.arange(240), torch.empty(240, 0)
    networks = VAALNetworks(VAE((1, 8, 8), 5, 4), nn.Linear(5, 1))
    arguments = (seen, networks, index, Condition(nothing, nothing))
    (together,) = labeled_logits(*arguments, index)
    (apart,) = labeled_logits(*arguments, index[:1])
    torch.testing.assert_close(together[:1], apart)


def test_a_subset_is_chosen_from() -> None:
    seen, _ = two_kinds(0)
    for strategy in (uncertain_gcn, core_gcn):
        assert len(set(strategy(seen, 20, seeded(), steps=1, subset=30).index.tolist())) == 20
    assert len(vaal(seen, 20, seeded(), steps=1, batch_size=4, width=4, subset=5).index) == 20


def test_the_losses_of_vaal_by_formula() -> None:
    x, y, mean, log_variance = torch.randn(4, 6, 5, generator=seeded())
    known, asked = torch.randn(2, 6, 1, generator=seeded(1))
    apart = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0))
    squared = ((x - y) ** 2).mean()
    torch.testing.assert_close(vae_loss(x, y, mean, log_variance, 2.0, "mean"), squared + 2 * apart.mean())
    torch.testing.assert_close(vae_loss(x, y, mean, log_variance, 2.0, "sum"), squared + 2 * apart.sum())
    p, q = known.sigmoid(), asked.sigmoid()
    torch.testing.assert_close(adversarial_loss(known, asked), -p.log().mean() - q.log().mean())
    torch.testing.assert_close(discriminator_loss(known, asked), -p.log().mean() - (1 - q).log().mean())


def test_the_autoencoder_minimizes_all_three_of_its_losses() -> None:
    torch.manual_seed(0)
    network, judge = VAE((1, 8, 8), 5, 4, 1).eval(), nn.Linear(6, 1)
    images, noise, rank = torch.randn(6, 1, 8, 8), torch.randn(6, 5), torch.randn(6, 1)
    mean, log_variance = network.encode(images)
    decoded = network.decode(mean + noise * log_variance.exp().sqrt(), rank.sigmoid())
    expected = 3.0 * adversarial_loss(*judge(torch.cat([mean, rank], 1)).split(3))
    for half in (slice(0, 3), slice(3, 6)):
        expected += vae_loss(images[half], decoded[half], mean[half], log_variance[half], 2.0, "mean")
    loss = autoencoder_loss(VAALNetworks(network, judge), images, Condition(rank.sigmoid(), rank), noise, RECIPE)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 33, 33), (3, 64, 64), (1, 2, 2), (1, 28, 33)]
)
def test_the_autoencoder_fits_any_side(shape: tuple[int, int, int]) -> None:
    network = VAE(shape, latent=5, width=2, conditions=1)
    mean, log_variance = network.encode(torch.rand(3, *shape))
    assert mean.shape == log_variance.shape == (3, 5)
    assert network.decode(mean, torch.rand(3, 1)).shape == (3, *shape)


def test_the_autoencoder_is_the_published_one_at_32_pixels() -> None:
    assert [strided_layers(side) for side in (8, 28, 32, 33, 64, 96, 224)] == [2, 3, 4, 4, 5, 5, 6]
    with torch.device("meta"):
        network = VAE((3, 32, 32), latent=32, width=128)
    shapes = [tuple(parameter.shape) for parameter in network.parameters() if parameter.ndim > 1]
    down = [(128, 3, 4, 4), (256, 128, 4, 4), (512, 256, 4, 4), (1024, 512, 4, 4)]
    middle = [(32, 1024 * 2 * 2), (32, 1024 * 2 * 2), (1024 * 4 * 4, 32)]
    up = [(1024, 512, 4, 4), (512, 256, 4, 4), (256, 128, 4, 4), (3, 128, 1, 1)]
    assert shapes == down + middle + up


def test_batches_pass_over_all_images_in_turn() -> None:
    drawn = passes(7, 20, seeded())
    assert sorted(drawn[:7].tolist()) == sorted(drawn[7:14].tolist()) == [*range(7)]
    assert passes(1, 5, seeded()).tolist() == [0] * 5
    rows = training_rows(3, 50, RECIPE, seeded())
    assert len(rows) == 8
    assert all(set(part[:6].tolist()) <= {0, 1, 2} and part[6:].min() >= 3 and part.max() < 53 for part in rows)
    assert len({row for part in rows for row in part[6:].tolist()}) == 48


def adjacency(embedding: Tensor) -> Tensor:
    """Returns the published normalized adjacency matrix."""
    unit = normalize(embedding.double())
    similarity = unit @ unit.T - torch.eye(len(unit))
    return similarity / similarity.sum(dim=0) + torch.eye(len(unit))


def test_propagation_is_the_product_with_the_adjacency() -> None:
    rng = seeded()
    embedding, x = torch.rand(40, 8, generator=rng), torch.randn(40, 3, generator=rng)
    graph = similarity_graph(embedding)
    torch.testing.assert_close(propagated(graph, x).double(), adjacency(embedding) @ x.double(), atol=1e-5, rtol=1e-5)


def test_nodes_without_neighbors_keep_themselves_alone() -> None:
    x = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    embedding = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
    assert propagated(similarity_graph(embedding), x).flatten().tolist() == [3, 3, 4, 8]
    assert propagated(similarity_graph(embedding[:1]), x[:1]).tolist() == [[1]]
    opposite = torch.tensor([[1.0], [-1.0]])
    assert propagated(similarity_graph(opposite), x[:2]).tolist() == [[1], [2]]


def test_the_graph_network_by_formula() -> None:
    embedding = torch.rand(20, 6, generator=seeded())
    matrix, x = adjacency(embedding).float(), normalize(embedding)
    graph = similarity_graph(embedding)
    network, keep = GCN(6, 4), (torch.rand(20, 4, generator=seeded(1)) > 0.3) / 0.7
    features, logit = network(graph, propagated(graph, graph.points), keep)
    hidden = (matrix @ (x @ network.first.weight.T) + network.first.bias).relu()
    torch.testing.assert_close(features, hidden, atol=1e-5, rtol=1e-5)
    expected = matrix @ ((hidden * keep) @ network.second.weight.T) + network.bias
    torch.testing.assert_close(logit, expected[:, 0], atol=1e-5, rtol=1e-5)
    p = logit.sigmoid()
    torch.testing.assert_close(
        labeled_loss(logit[:5], logit[5:], 1.2), -p[:5].log().mean() - 1.2 * (1 - p[5:]).log().mean()
    )


def test_uncertain_gcn_takes_what_is_nearest_to_the_margin() -> None:
    seen, _ = two_kinds(1)
    _, logit = train_graph_network(seen, GRAPH_RECIPE, seeded())
    confidence = logit[40:].double().sigmoid()
    for margin in (0.1, confidence.median().item()):
        picked = uncertain_gcn(seen, 9, seeded(), steps=5, hidden=16, margin=margin, subset=None)
        gap = (confidence - margin).abs()
        torch.testing.assert_close(-picked.score, gap.sort().values[:9])
        assert set(picked.index.tolist()) == set(seen.unlabeled[gap.argsort()[:9]].tolist())


def test_core_gcn_covers_the_features_of_the_graph_network() -> None:
    seen, _ = two_kinds(2)
    rng = seeded()
    features, logit = train_graph_network(seen, GRAPH_RECIPE, rng)
    expected = greedy(features[:40], features[40:], 9)
    picked = core_gcn(seen, 9, seeded(), steps=5, hidden=16, subset=None)
    assert picked.index.tolist() == seen.unlabeled[expected].tolist()
    torch.testing.assert_close(picked.score, 1 - logit[40:][expected].double().sigmoid())


def greedy(centers: Tensor, points: Tensor, n: int) -> list[int]:
    """Runs greedy k-center with full float64 matrices."""
    centers, chosen = centers.double(), []
    for _ in range(n):
        gap = (points.double()[:, None] - centers[None]).square().sum(2).amin(1)
        gap[chosen] = -1
        chosen.append(int(gap.argmax()))
        centers = torch.cat([centers, points[chosen[-1]].double()[None]])
    return chosen


def test_k_center_greedy_breaks_ties_by_the_generator_and_takes_copies_last() -> None:
    points = torch.tensor([[3.0], [3.0], [-3.0], [0.0], [0.0]])
    orders = [k_center_greedy(torch.zeros(1, 1), points, 5, seeded(seed))[0].tolist() for seed in range(20)]
    assert all(sorted(order) == [*range(5)] and 2 in order[:2] and {*order[:2]} & {0, 1} for order in orders)
    assert len({tuple(order) for order in orders}) > 4


def test_vaal_initializes_all_linear_layers_as_published() -> None:
    network = VAE((3, 32, 32), latent=8, width=4)
    for layer in (network.mean, network.log_variance, network.seed):
        assert bool((layer.bias == 0).all())
        assert layer.weight.std().item() == pytest.approx((2 / layer.in_features) ** 0.5, rel=0.1)
