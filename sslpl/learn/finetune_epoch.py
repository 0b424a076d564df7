"""What an epoch of the fine-tune sees, and how it is augmented."""

from typing import NamedTuple

import torch
from torch import Tensor

from sslpl.data.augmentation import StrongDraws, WeakDraws
from sslpl.data.batches import epoch_batches, unlabeled_batch_size
from sslpl.seeds import rng
from sslpl.setup import Setup
from sslpl.state import State


class FinetuneEpoch(NamedTuple):
    """One epoch's batches and draws: of the labeled images, and of the unlabeled ones beside them."""

    labeled: list[Tensor]
    labeled_draws: WeakDraws
    unlabeled: list[Tensor]  # empty without an unlabeled term
    weak_draws: list[WeakDraws]  # one for each weak view
    strong_draws: StrongDraws | None

    def images(self, step: int) -> int:
        """How many images a step sees."""
        return len(self.labeled[step]) + (len(self.unlabeled[step]) if step < len(self.unlabeled) else 0)


def draw_finetune_epoch(setup: Setup, state: State, epoch: int) -> FinetuneEpoch:
    """Draws one epoch: which images are seen when, and how they are augmented."""
    training, pool, augmentation = setup.training, state.pool, setup.augmentation
    size, unlabeled, learned = training.batch_size, pool.unlabeled, state.train_index

    def stream(purpose: str) -> torch.Generator:
        return rng(setup.seed, purpose, state.cycle, epoch)

    labeled = epoch_batches(learned, pool.size, size, stream("finetune_order"))
    labeled_draws = augmentation.draw_weak(len(learned), stream("finetune_weak"))
    many = unlabeled_batch_size(len(unlabeled), len(learned), size, training.unlabeled_batch_limit)
    if setup.ssl is None or many == 0:
        return FinetuneEpoch(labeled, labeled_draws, [], [], None)
    batches = epoch_batches(unlabeled, pool.size, many, stream("unlabeled_order"))[: len(labeled)]
    count = sum(len(batch) for batch in batches)
    purposes = ["unlabeled_weak", *(f"unlabeled_weak_{view}" for view in range(1, setup.num_weak_views))]
    weak = [augmentation.draw_weak(count, stream(purpose)) for purpose in purposes]
    return FinetuneEpoch(
        labeled, labeled_draws, batches, weak, augmentation.draw_strong(count, stream("unlabeled_strong"))
    )
