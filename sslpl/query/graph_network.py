"""UncertainGCN and CoreGCN: a graph network that tells labeled from unlabeled images by the company they keep."""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import logsigmoid, normalize

from sslpl.seeds import build_seeded
from sslpl.types import QueryContext

ISOLATED = 1e-3  # a node whose mean similarity to the others is not above this has no neighbors


class GraphRecipe(NamedTuple):
    """How the graph network learns."""

    steps: int
    hidden: int
    dropout: float
    rate: float
    weight_decay: float
    unlabeled_weight: float


class Graph(NamedTuple):
    """N images and their cosine similarities, which are never held as a matrix."""

    points: Tensor  # [N, D], embeddings of length 1
    own: Tensor  # [N, 1], similarity to itself: 1, or 0 for an embedding of zeros
    weight: Tensor  # [N, 1], one over the summed similarity to the others


def train_graph_network(context: QueryContext, recipe: GraphRecipe, rng: Generator) -> tuple[Tensor, Tensor]:
    """Hidden features [L + U, hidden] and logits of being labeled [L + U], of the labeled and the unlabeled images."""
    embedding = torch.cat([context.labeled_predictions.embedding, context.predictions.embedding])
    graph = similarity_graph(embedding)
    mixed = propagated(graph, graph.points)  # A (X W) is (A X) W, and X never changes
    seed = int(torch.randint(2**62, (), generator=rng))
    network = build_seeded(lambda: GCN(mixed.shape[1], recipe.hidden).to(mixed.device), seed, "gcn")
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay)
    for _ in range(recipe.steps):
        keep = torch.rand(len(mixed), recipe.hidden, generator=rng) >= recipe.dropout
        _, logit = network(graph, mixed, keep.to(mixed.device) / (1 - recipe.dropout))
        loss = labeled_loss(logit[: len(context.labeled)], logit[len(context.labeled) :], recipe.unlabeled_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        features: Tensor
        features, logit = network(graph, mixed, torch.ones((), device=mixed.device))
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

    def forward(self, graph: Graph, mixed: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden features [N, hidden] and logits [N] of neighborhoods `mixed` [N, D]; `keep` scales for dropout."""
        features = self.first(mixed).relu()
        return features, propagated(graph, self.second(features * keep))[:, 0] + self.bias


def similarity_graph(embedding: Tensor) -> Graph:
    """The graph of N embeddings [N, D]; a node without neighbors keeps its self loop alone (ours)."""
    points = normalize(embedding.float())
    own = points.square().sum(dim=1, keepdim=True).round()
    degree = points @ points.sum(dim=0)[:, None] - own
    lonely = degree <= ISOLATED * (len(points) - 1)
    return Graph(points, own, torch.where(lonely, 0.0, 1 / degree))


def propagated(graph: Graph, x: Tensor) -> Tensor:
    """A X for X [N, C], where A = (E E^T - I) D^-1 + I: the public code's adjacency, to rounding, without its N^2.

    E are the unit embeddings and D the column sums of E E^T - I. The product is taken as E (E^T (D^-1 X)), less the
    diagonal: time and memory are linear in N, and nothing is left out or clipped.
    """
    scaled = graph.weight * x
    return graph.points @ (graph.points.T @ scaled) - graph.own * scaled + x


def labeled_loss(labeled: Tensor, unlabeled: Tensor, unlabeled_weight: float) -> Tensor:
    """Binary cross-entropy of logits, the means of both groups apart (Caramalau et al. 2021, equation 5)."""
    return -logsigmoid(labeled).mean() - unlabeled_weight * logsigmoid(-unlabeled).mean()
