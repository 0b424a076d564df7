"""The schedule of a run: the phases of each cycle and their numbers of epochs and steps."""

from typing import NamedTuple

from sslpl.training import Training

RESUMABLE_PHASES = ("train", "ensemble", "finetune")  # phases with epochs, which can be saved after any step
TRAINING_PHASES = ("train", "ensemble")  # which train backbones
FINISHED = "finished"


class Schedule(NamedTuple):
    """The phases of each cycle (from 0) and their lengths."""

    cycles: int
    training: Training
    has_module: bool
    members: int = 0  # separately trained networks that the query needs; 0: the backbone alone

    def is_last(self, cycle: int) -> bool:
        """True for the last cycle, which queries nothing."""
        return cycle == self.cycles - 1

    def has_finetune(self, cycle: int) -> bool:
        """True if the cycle fine-tunes the module; the last cycle does so only with `training.finetune_last`."""
        enabled = self.has_module and self.training.finetune_epochs > 0
        return enabled and (not self.is_last(cycle) or self.training.finetune_last)

    def has_ensemble(self, cycle: int) -> bool:
        """True if the cycle trains an ensemble, for its query."""
        return self.members > 1 and not self.is_last(cycle)

    def is_trimmed(self, cycle: int) -> bool:
        """True if the joint training of a cycle excludes images: not in the last cycle, unless it is also the first."""
        return self.training.trim and (cycle == 0 or not self.is_last(cycle))

    def phases(self, cycle: int) -> tuple[str, ...]:
        """Returns the phases of a cycle in order."""
        ensemble = ("ensemble",) if self.has_ensemble(cycle) else ()
        finetune = ("finetune",) if self.has_finetune(cycle) else ()
        return ("train", *ensemble, *finetune, "evaluate", *(() if self.is_last(cycle) else ("query", "label")))

    def phase_after(self, phase: str, cycle: int) -> str | None:
        """Returns the next phase of the cycle, None after its last one; `start` precedes the first cycle."""
        phases = ("start", *self.phases(cycle))
        next_index = phases.index(phase) + 1
        return phases[next_index] if next_index < len(phases) else None

    def joint_training(self, images: int) -> Training:
        """Returns the training options of a joint training on a number of images, with its number of epochs."""
        return self.training.for_steps(max(1, self.steps_per_epoch(images)))

    def epochs(self, phase: str, images: int) -> int:
        """Returns the number of epochs of a phase with `images` images per epoch; 1 for a phase without epochs."""
        if phase in ("train", "ensemble"):
            return self.joint_training(images).epochs * (1 if phase == "train" else self.members - 1)
        return self.training.finetune_epochs if phase == "finetune" else 1

    def steps_per_epoch(self, images: int) -> int:
        """Returns the number of batches per epoch; a last batch of a single image is merged into the previous one."""
        size = self.training.batch_size
        return -(-images // size) - (images > size > 1 and images % size == 1)

    @property
    def tracker_steps(self) -> int:
        """The number of tracker steps per cycle: one per possible epoch, and those for the metrics of the cycle."""
        return self.training.most_epochs + self.training.finetune_epochs + 2

    def tracker_step(self, cycle: int, phase: str, epoch: int) -> int:
        """Returns the tracker step of an epoch, which increases over all epochs of all cycles."""
        return cycle * self.tracker_steps + (self.training.most_epochs if phase == "finetune" else 0) + epoch
