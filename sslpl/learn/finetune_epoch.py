"""The batches and augmentation parameters of a fine-tune epoch."""

from typing import NamedTuple

import torch
from torch import Tensor

from sslpl.data.augmentation import StrongDraws, WeakDraws
from sslpl.data.batches import epoch_batches, unlabeled_batch_size
from sslpl.seeds import rng
from sslpl.setup import Setup
from sslpl.state import State


class FinetuneEpoch(NamedTuple):
    """The labeled and unlabeled batches of an epoch, and their augmentation parameters."""

    labeled: list[Tensor]
    labeled_draws: WeakDraws
    unlabeled: list[Tensor]  # empty without an unlabeled term
    weak_draws: list[WeakDraws]  # one for each weak view
    strong_draws: StrongDraws | None

    def images(self, step: int) -> int:
        """Returns the number of labeled and unlabeled images of a step."""
        return len(self.labeled[step]) + (len(self.unlabeled[step]) if step < len(self.unlabeled) else 0)


def draw_finetune_epoch(setup: Setup, state: State, epoch: int) -> FinetuneEpoch:
    """Draws the batches and the augmentation parameters of an epoch."""
    training, pool, augmentation = setup.training, state.pool, setup.augmentation
    size, unlabeled, train_index = training.batch_size, pool.unlabeled, state.train_index

    def generator(purpose: str) -> torch.Generator:
        return rng(setup.seed, purpose, state.cycle, epoch)

    labeled = epoch_batches(train_index, pool.size, size, generator("finetune_order"))
    labeled_draws = augmentation.draw_weak(len(train_index), generator("finetune_weak"))
    unlabeled_size = unlabeled_batch_size(len(unlabeled), len(train_index), size, training.unlabeled_batch_limit)
    if setup.ssl is None or unlabeled_size == 0:
        return FinetuneEpoch(labeled, labeled_draws, [], [], None)
    batches = epoch_batches(unlabeled, pool.size, unlabeled_size, generator("unlabeled_order"))[: len(labeled)]
    count = sum(len(batch) for batch in batches)
    purposes = ["unlabeled_weak", *(f"unlabeled_weak_{view}" for view in range(1, setup.num_weak_views))]
    weak = [augmentation.draw_weak(count, generator(purpose)) for purpose in purposes]
    return FinetuneEpoch(
        labeled, labeled_draws, batches, weak, augmentation.draw_strong(count, generator("unlabeled_strong"))
    )
