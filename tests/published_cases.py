"""Twenty random pools on which strategies are compared with their authors' published code.

The numbers come from numpy's seeded generator, so that `tests/data/strategies/` holds only what that code returned.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from querying import context
from torch import Tensor, nn

from sslpl.query.context import Context, Weights
from sslpl.types import Predictions

DATA = Path(__file__).parent / "data" / "strategies"
SEEDS = range(20)


class Case(NamedTuple):
    """A pool of 200 to 2,000 images, the first of which are labeled, with rectified embeddings around class centers."""

    embedding: Tensor  # [pool, D] float32
    classes: Tensor  # [pool], the true classes
    head: nn.Linear
    labeled: int
    n: int

    @property
    def logits(self) -> Tensor:
        with torch.no_grad():
            return self.head(self.embedding)


def case(seed: int) -> Case:
    """Returns the random pool of a seed."""
    rng = np.random.default_rng(seed)
    pool, labeled, n = int(rng.integers(200, 2001)), int(rng.integers(10, 61)), int(rng.integers(5, 21))
    dimensions, classes = int(rng.integers(8, 33)), int(rng.integers(2, 9))
    centers = rng.standard_normal((classes, dimensions))
    label = rng.integers(classes, size=pool)
    embedding = np.maximum(centers[label] + rng.standard_normal((pool, dimensions)), 0)
    weight = centers + 0.7 * rng.standard_normal((classes, dimensions))
    head = nn.Linear(dimensions, classes)
    head.weight.data = torch.from_numpy(weight / 2).float()
    head.bias.data = torch.from_numpy(rng.standard_normal(classes) / 2).float()
    return Case(torch.from_numpy(embedding).float(), torch.from_numpy(label), head, labeled, n)


def seen(drawn: Case) -> Context:
    """Returns the context of a strategy that queries the pool of a case."""
    pool = len(drawn.embedding)

    def predict(weights: Weights | None, index: Tensor) -> Predictions:
        assert weights is None
        return Predictions(index, drawn.logits[index], drawn.embedding[index], None)

    return replace(
        context(),
        unlabeled=torch.arange(drawn.labeled, pool),
        labeled=torch.arange(drawn.labeled),
        labels=drawn.classes[: drawn.labeled],
        candidates=pool - drawn.labeled,
        num_classes=drawn.head.out_features,
        backbone=nn.ModuleDict({"head": drawn.head}),
        predict=predict,
        truth=drawn.classes,
    )


def published(strategy: str, seed: int) -> dict[str, Tensor]:
    """Returns what the published code computed for a case."""
    with np.load(DATA / f"{strategy}.npz") as file:
        return {key.split("/")[1]: torch.from_numpy(file[key]) for key in file.files if key.startswith(f"{seed}/")}
