"""BALD and other scorers over Monte Carlo dropout (Gal et al. 2017)."""

from torch import Generator, Tensor

from sslpl.query import disagreement
from sslpl.query.mc_dropout import measure_dropout
from sslpl.types import Count, QueryContext, ShareBelowOne


def bald(context: QueryContext, rng: Generator, *, samples: Count = 100, dropout: ShareBelowOne = 0.5) -> Tensor:
    """Computes the mutual information [U] of class and network, in nats (Houlsby et al. 2011, Gal et al. 2017)."""
    return measure_dropout(context, rng, samples, dropout, disagreement.mutual_information).clamp_(min=0)


def dropout_entropy(
    context: QueryContext, rng: Generator, *, samples: Count = 100, dropout: ShareBelowOne = 0.5
) -> Tensor:
    """Returns the entropy [U] of the mean over the sampled networks, in nats (Gal et al. 2017)."""
    return measure_dropout(context, rng, samples, dropout, disagreement.consensus_entropy)


def mean_std(context: QueryContext, rng: Generator, *, samples: Count = 100, dropout: ShareBelowOne = 0.5) -> Tensor:
    """Returns the std [U] over the sampled networks, averaged over classes (Kampffmeyer 2016, Gal et al. 2017)."""
    return measure_dropout(context, rng, samples, dropout, disagreement.members_std)


def variation_ratio(
    context: QueryContext, rng: Generator, *, samples: Count = 100, dropout: ShareBelowOne = 0.5
) -> Tensor:
    """Returns the share [U] of networks outside the modal class (Freeman 1965; by votes, as in Gal's thesis)."""
    return measure_dropout(context, rng, samples, dropout, disagreement.vote_variation)
