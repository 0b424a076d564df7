"""The ensemble phase: trains the other networks of an ensemble, as the backbone has been trained."""

from collections.abc import Iterator

from sslpl.phases.train import train
from sslpl.query.context import Needs
from sslpl.seeds import derive_seed
from sslpl.setup import Setup
from sslpl.state import State, weights_of
from sslpl.types import Step


def train_ensemble(setup: Setup, state: State) -> Iterator[Step]:
    """Trains each further member on the same labels, with random numbers of its own (Beluch et al. 2018).

    The backbone is the first member. `state` advances by whole members: a resumed run trains its current member anew.
    """
    if state.epoch == 0:
        state.snapshots = [weights_of(state.backbone)]
    epochs = setup.schedule(has_module=False).epochs("train", len(state.joint_train_index))
    for member in range(1 + state.epoch // epochs, setup.needs.members):
        trained = new_member(setup, state, member)
        for step in train(member_setup(setup, member), trained):
            yield step._replace(metrics=None)  # those of the backbone are tracked
        state.snapshots.append(weights_of(trained.backbone))
        if setup.training.warm_start:
            state.members[member - 1 : member] = [trained.unaveraged_weights or state.snapshots[-1]]
        state.epoch = member * epochs


def new_member(setup: Setup, state: State, member: int) -> State:
    """Returns the state in which a member starts: with new weights or, with `warm_start`, those of the last cycle."""
    backbone, _ = setup.build(state.cycle, member=member)
    if setup.training.warm_start and member <= len(state.members):
        backbone.load_state_dict(state.members[member - 1])
    return State(
        state.pool,
        state.ledger,
        state.excluded,
        backbone,
        None,
        state.held_out,
        state.cycle,
        class_names=state.class_names,
        uncapturable=state.uncapturable,
    )


def member_setup(setup: Setup, member: int) -> Setup:
    """Returns the setup of a member, which has a seed of its own, and no module or query to train for."""
    return setup._replace(seed=derive_seed(setup.seed, "member", member), ssl=None, needs=Needs())
