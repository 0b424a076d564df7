"""The decision, after a cycle's evaluation, whether the run ends before its last cycle."""

from sslpl.forecast import expected_gain
from sslpl.setup import Setup
from sslpl.state import State
from sslpl.stopping import batch_exceeds_seconds, gain_is_small, predictions_are_stable


def stop_reason(setup: Setup, state: State) -> str | None:
    """Returns why a run ends with the current cycle, whose metrics are in `state.row`; None if it goes on."""
    budget, rows = setup.budget, [*state.history, state.row]
    per_cycle, labeled = int(budget.per_cycle), [float(row["labeled"] or 0) for row in rows]
    spent = state.row.get("labeling_seconds")
    limit = budget.seconds
    if limit is not None and spent is not None and batch_exceeds_seconds(spent, int(labeled[-1]), per_cycle, limit):
        return f"another batch would exceed budget.seconds={limit:g} ({spent:,.0f} spent)"
    if budget.stop == "stable_predictions":
        kappas = [row.get("prediction_kappa") for row in rows]
        if predictions_are_stable(kappas, budget.stop_kappa):
            return f"the predictions are stable (kappa {kappas[-1]:.4f}; budget.stop_kappa={budget.stop_kappa})"
    if budget.stop == "expected_gain":
        accuracy = [float(row["test_accuracy"] or 0) for row in rows]
        gain = expected_gain(labeled, accuracy, len(setup.dataset.test), per_cycle)
        if gain_is_small(gain, budget.stop_gain):
            return f"a batch is expected to gain {gain:.2%} (budget.stop_gain={budget.stop_gain})"
    return None
