"""The graph network of UncertainGCN and CoreGCN, which classifies images as labeled or unlabeled."""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import logsigmoid, normalize

from sslpl.seeds import build_seeded
from sslpl.types import QueryContext

ISOLATED = 1e-3  # a node whose mean similarity to the others is not above this has no neighbors


class GraphRecipe(NamedTuple):
    """Hyperparameters of the graph network."""

    steps: int
    hidden: int
    dropout: float
    rate: float
    weight_decay: float
    unlabeled_weight: float


class Graph(NamedTuple):
    """The cosine-similarity graph of N images, stored without its N x N matrix."""

    points: Tensor  # [N, D], embeddings of unit length
    self_similarity: Tensor  # [N, 1], of each node: 1, or 0 for an embedding of zeros
    weight: Tensor  # [N, 1], 1 / sum of the similarities to the other nodes


def train_graph_network(context: QueryContext, recipe: GraphRecipe, rng: Generator) -> tuple[Tensor, Tensor]:
    """Trains a graph network; returns hidden features [L + U, hidden] and logits of being labeled [L + U]."""
    embedding = torch.cat([context.labeled_predictions.embedding, context.predictions.embedding])
    graph = similarity_graph(embedding)
    aggregated = propagated(graph, graph.points)  # A (X W) = (A X) W, and X is constant
    seed = int(torch.randint(2**62, (), generator=rng))
    network = build_seeded(lambda: GCN(aggregated.shape[1], recipe.hidden).to(aggregated.device), seed, "gcn")
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay)
    for _ in range(recipe.steps):
        keep = torch.rand(len(aggregated), recipe.hidden, generator=rng) >= recipe.dropout
        _, logit = network(graph, aggregated, keep.to(aggregated.device) / (1 - recipe.dropout))
        loss = labeled_loss(logit[: len(context.labeled)], logit[len(context.labeled) :], recipe.unlabeled_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        features: Tensor
        features, logit = network(graph, aggregated, torch.ones((), device=aggregated.device))
    return features, logit


class GCN(nn.Module):
    """Two graph convolutions with a ReLU between them (Kipf and Welling 2017; initial weights of the public code)."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, hidden), nn.Linear(hidden, 1, bias=False)
        self.bias = nn.Parameter(torch.empty(1))
        for parameters, outputs in ((self.first.parameters(), hidden), ((self.second.weight, self.bias), 1)):
            for parameter in parameters:
                nn.init.uniform_(parameter, -1 / math.sqrt(outputs), 1 / math.sqrt(outputs))

    def forward(self, graph: Graph, aggregated: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Returns features [N, hidden] and logits [N] from `aggregated` = A X [N, D]; `keep` is a dropout mask."""
        features = self.first(aggregated).relu()
        return features, propagated(graph, self.second(features * keep))[:, 0] + self.bias


def similarity_graph(embedding: Tensor) -> Graph:
    """Builds the graph of embeddings [N, D]; a node without neighbors keeps only its self-loop (ours)."""
    points = normalize(embedding.float())
    self_similarity = points.square().sum(dim=1, keepdim=True).round()
    degree = points @ points.sum(dim=0)[:, None] - self_similarity
    isolated = degree <= ISOLATED * (len(points) - 1)
    return Graph(points, self_similarity, torch.where(isolated, 0.0, 1 / degree))


def propagated(graph: Graph, x: Tensor) -> Tensor:
    """Computes A X for X [N, C] and the published code's adjacency A = (E E^T - I) D^-1 + I, without an N x N matrix.

    E are the unit embeddings and D the column sums of E E^T - I. The product is computed as E (E^T (D^-1 X))
    minus the diagonal: time and memory are linear in N, and the result is exact up to rounding.
    """
    scaled = graph.weight * x
    return graph.points @ (graph.points.T @ scaled) - graph.self_similarity * scaled + x


def labeled_loss(labeled: Tensor, unlabeled: Tensor, unlabeled_weight: float) -> Tensor:
    """Computes the binary cross-entropy of logits, averaged per group (Caramalau et al. 2021, equation 5)."""
    return -logsigmoid(labeled).mean() - unlabeled_weight * logsigmoid(-unlabeled).mean()
