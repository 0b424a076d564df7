"""Twenty random cases for the strategies, computed from a seed, to compare them with their authors' code."""

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from querying import predicting
from torch import Tensor
from torch.nn.functional import one_hot

from sslpl.query.context import Context, Weights
from sslpl.types import Predictions

SEEDS = range(20)


class Case(NamedTuple):
    """A pool whose first images are labeled."""

    embedding: Tensor  # [N, D]
    logits: Tensor  # [N, classes]
    classes: Tensor  # [N], the true ones
    labeled: int
    n: int  # images to select


@cache
def random_case(seed: int) -> Case:
    """200 to 2,000 images in 8 to 128 dimensions and 2 to 50 classes; in every fifth case none is labeled."""
    rng = np.random.RandomState(seed)  # whose numbers are the same in every version
    images, n = rng.randint(200, 2001), rng.randint(5, 41)
    dimensions, classes = rng.choice([8, 16, 32, 64, 128]), rng.choice([2, 3, 5, 10, 20, 50])
    labeled = 0 if seed % 5 == 0 else rng.randint(10, images // 5)
    label = rng.randint(classes, size=images)
    embedding = rng.randn(classes, dimensions)[label] + rng.randn(images, dimensions)
    embedding = np.maximum(embedding, 0.1 * embedding)
    logits = 2 * np.asarray(one_hot(torch.from_numpy(label), int(classes))) + 1.5 * rng.randn(images, classes)
    tensors = (torch.from_numpy(array) for array in (embedding.astype("f4"), logits.astype("f4"), label))
    return Case(*tensors, int(labeled), int(n))


def case_context(case: Case) -> Context:
    """The case as a strategy sees it."""
    index = torch.arange(len(case.embedding))
    known, unknown = (
        Predictions(index[part], case.logits[part], case.embedding[part], None)
        for part in (slice(case.labeled), slice(case.labeled, None))
    )

    def predict(weights: Weights | None, wanted: Tensor) -> Predictions:
        assert torch.equal(wanted, known.index)
        return known

    return replace(
        predicting(unknown.logits, unknown.embedding),
        predict=predict,
        labels=case.classes[: case.labeled],
        unlabeled=unknown.index,
        labeled=known.index,
        precomputed=unknown,
    )
