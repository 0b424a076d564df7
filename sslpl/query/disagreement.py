"""Measures [N] of disagreement between networks, from their log-probabilities [N, members, classes]."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from sslpl.clustering.neighbors import by_rows
from sslpl.types import Predictions


def committee_disagreement(members: Sequence[Predictions], measure: Callable[[Tensor], Tensor]) -> Tensor:
    """Applies a measure to the predictions of a committee for N images, in blocks; returns [N]."""

    def block_disagreement(*logits: Tensor) -> Tensor:
        return measure(torch.stack(logits, dim=1).double().log_softmax(dim=2))

    return by_rows(block_disagreement, *(member.logits for member in members))


def mutual_information(log_probability: Tensor) -> Tensor:
    """Computes the mutual information of class and network, in nats (BALD: Houlsby et al. 2011).

    It equals the mean KL divergence of the members from their consensus (McCallum and Nigam 1998).
    """
    return consensus_entropy(log_probability) - entropy_of(log_probability.exp()).mean(dim=1)


def consensus_entropy(log_probability: Tensor) -> Tensor:
    """Computes the entropy of the members' mean, in nats."""
    return entropy_of(log_probability.exp().mean(dim=1))


def members_std(log_probability: Tensor) -> Tensor:
    """Computes the standard deviation over the members, averaged over classes (Kampffmeyer et al. 2016)."""
    return log_probability.exp().std(dim=1, correction=0).mean(dim=1)


def vote_variation(log_probability: Tensor) -> Tensor:
    """Computes the share of members that do not vote for the modal class (Freeman 1965)."""
    return 1 - votes(log_probability).amax(dim=1)


def vote_entropy(log_probability: Tensor) -> Tensor:
    """Computes the entropy of the members' votes, in nats (Dagan and Engelson 1995)."""
    return entropy_of(votes(log_probability))


def votes(log_probability: Tensor) -> Tensor:
    """Computes the share of members [N, classes] for which each class is the most likely one."""
    members, classes = log_probability.shape[1:]
    return one_hot(log_probability.argmax(dim=2), classes).sum(dim=1).to(log_probability.dtype) / members


def entropy_of(probability: Tensor) -> Tensor:
    """Computes the entropy [...] of probabilities [..., classes], in nats."""
    tiny = torch.finfo(probability.dtype).tiny  # so that 0 log 0 is 0
    return -probability.clamp(min=tiny).log_().mul_(probability).sum(dim=-1)
