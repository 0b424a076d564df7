"""The schedule of a run: which phases a cycle has, and how many epochs and steps."""

from typing import NamedTuple

from sslpl.training import Training

RESUMABLE_PHASES = ("train", "finetune")  # those with epochs: they can be saved, and resumed, between two steps
FINISHED = "finished"


class Schedule(NamedTuple):
    """The phases of each cycle (from 0) and their lengths."""

    cycles: int
    training: Training
    has_module: bool

    def is_last(self, cycle: int) -> bool:
        """Whether a cycle is the last one, after which nothing is queried."""
        return cycle == self.cycles - 1

    def has_finetune(self, cycle: int) -> bool:
        """Whether the module is fine-tuned in a cycle: not in the last one, unless `training.finetune_last`."""
        wanted = self.has_module and self.training.finetune_epochs > 0
        return wanted and (not self.is_last(cycle) or self.training.finetune_last)

    def is_trimmed(self, cycle: int) -> bool:
        """Whether the joint training of a cycle excludes images: not in the last cycle, unless it is the first too."""
        return self.training.trim and (cycle == 0 or not self.is_last(cycle))

    def phases(self, cycle: int) -> tuple[str, ...]:
        """The phases of a cycle in their order."""
        finetune = ("finetune",) if self.has_finetune(cycle) else ()
        return ("train", *finetune, "evaluate", *(() if self.is_last(cycle) else ("query", "label")))

    def phase_after(self, phase: str, cycle: int) -> str | None:
        """The next phase of the same cycle; None after its last one. `start` precedes the first cycle."""
        phases = ("start", *self.phases(cycle))
        following = phases.index(phase) + 1
        return phases[following] if following < len(phases) else None

    def epochs(self, phase: str) -> int:
        """How many epochs a phase has; 1 for a phase without epochs."""
        return {"train": self.training.epochs, "finetune": self.training.finetune_epochs}.get(phase, 1)

    def steps_per_epoch(self, images: int) -> int:
        """How many batches an epoch over so many labeled images has; a last batch of one image joins the one before."""
        size = self.training.batch_size
        return -(-images // size) - (images > size > 1 and images % size == 1)

    @property
    def tracker_steps(self) -> int:
        """How many steps of the tracker a cycle takes: its epochs, and one for its own numbers at the end."""
        return self.training.epochs + self.training.finetune_epochs + 2

    def tracker_step(self, cycle: int, phase: str, epoch: int) -> int:
        """A number that grows with every epoch of every cycle."""
        return cycle * self.tracker_steps + (self.training.epochs if phase == "finetune" else 0) + epoch
