"""A linear head fitted to the embeddings of labeled images."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

WEIGHT_DECAY = 5e-4  # as in the training
STEPS = 100  # of L-BFGS, at most


def fitted_head(embedding: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Fits weight [classes, D] and bias [classes] to embeddings [N, D] by cross-entropy and weight decay."""
    weight = embedding.new_zeros(num_classes, embedding.shape[1]).requires_grad_()
    bias = embedding.new_zeros(num_classes).requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        penalty = WEIGHT_DECAY / 2 * (weight.square().sum() + bias.square().sum())
        value = cross_entropy(linear(embedding, weight, bias), labels) + penalty
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
