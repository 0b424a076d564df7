"""TCM: TypiClust in the first cycles, the lowest margins afterwards (Doucet et al. 2024)."""

from torch import Generator

from sslpl.query.context import needs_faiss, works_unlabeled
from sslpl.query.scorers import margin
from sslpl.query.selection import ranked, select_rows
from sslpl.query.typiclust import typiclust
from sslpl.types import CountOrZero, QueryContext, Selection


@needs_faiss
@works_unlabeled
def tcm(context: QueryContext, n: int, rng: Generator, *, typiclust_cycles: CountOrZero = 3) -> Selection:
    """Selects by TypiClust in the first `typiclust_cycles` cycles, and the lowest margins in later ones (TCM).

    Doucet et al. 2024, with three cycles, as in the code of Huseljic et al. 2026; the paper has a rule for the switch,
    which could not be confirmed. The score is the typicality, then the negative margin.
    """
    if context.cycle < typiclust_cycles:
        typical: Selection = typiclust(context, n, rng)
        return typical
    score = margin(context, rng)
    return select_rows(context, ranked(score, rng)[:n], score)
