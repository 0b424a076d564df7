"""What the labeling page shows and accepts: a batch, who has which image, and the answers; safe for threads."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from statistics import median
from threading import Condition
from typing import Any, NamedTuple

from sslpl.oracle.aggregation import needs_answer
from sslpl.oracle.answer_log import Answer, AnswerLog
from sslpl.oracle.label_table import differs_by_case
from sslpl.oracle.submissions import Item, Submission

LEASE_SECONDS = 45.0  # after which the images of a page that was not heard of go to others
RECENT = 200  # answers over which the time per label is measured
MAX_REVIEWED = 60  # images that are offered for a second look
ANSWERED = ("label", "reject")
Record = dict[str, Any]


class Batch(NamedTuple):
    """The images of a request."""

    cycle: int
    index: tuple[int, ...]  # type: ignore[assignment]
    guesses: tuple[tuple[str, float] | None, ...]  # class name and probability; None without a trained model
    class_names: tuple[str, ...]


class Refusal(Exception):
    """Raised for an answer that does not count; the message is for the person."""


class Labeling:
    """The labeling of a run: the current batch and all answers so far."""

    def __init__(
        self,
        log: AnswerLog,
        names: Sequence[str],
        class_names: Sequence[str],
        new_classes: bool,
        clock: Callable[[], float] = time.monotonic,
        annotators: int = 1,
        max_answers: int = 1,
    ) -> None:
        self.log, self.names, self.new_classes = log, names, new_classes
        self.annotators, self.max_answers = (
            annotators,
            max_answers,
        )  # answers about an image, a disputed one
        self._index_of = {name: index for index, name in enumerate(names)}
        self._known_classes, self._clock, self._changed = tuple(class_names), clock, Condition()
        self._batch: Batch | None = None
        self._guess: dict[int, tuple[str, float] | None] = {}
        self._places: dict[int, int] = {}  # of the images of the batch
        self._open: dict[int, int] = {}  # images of it without an answer, likewise
        self._is_closed = True  # the run has taken the answers
        self._leases: dict[int, str] = {}  # tab that has an image
        self._tabs: dict[str, tuple[float, str]] = {}  # when it was last heard of, and its person

    # For the run

    def asks_for(self, cycle: int, index: Sequence[int]) -> bool:
        """True if the batch of a cycle with the images at `index` is the current one."""
        with self._changed:
            return self._batch is not None and self._batch[:2] == (cycle, tuple(index))

    def open_batch(self, batch: Batch) -> None:
        """Starts to ask for a batch; images that have an answer already count as answered."""
        with self._changed:
            self._batch, self._known_classes, self._is_closed = batch, batch.class_names, False
            self._guess |= dict(zip(batch.index, batch.guesses, strict=True))
            self._places = {index: place for place, index in enumerate(batch.index)}
            self._open = {index: place for index, place in self._places.items() if not self._is_answered(index)}
            self._leases.clear()

    def wait(self, seconds: float) -> bool:
        """Waits until the batch is complete, at most some seconds; returns whether it is."""
        with self._changed:
            return self._changed.wait_for(self._is_complete, seconds)

    def close_batch(self) -> list[Answer]:
        """Ends the batch, so that a further answer corrects an earlier one; returns the answers that hold."""
        with self._changed:
            self._is_closed = True
            return [answer for answer in self.log.all_current() if answer.action in ANSWERED]

    # For the pages

    def submit(self, submission: Submission) -> list[Record]:
        """Accepts or refuses answers, in order; those that are accepted are on the disk when this returns."""
        with self._changed:
            self._hear(submission.tab, submission.person)
            accepted: list[Answer] = []
            results = []
            for item in submission.items:
                try:
                    if item.id not in self.log.ids:
                        if any(answer.path == self._path(item) != "" for answer in accepted):
                            raise Refusal("This image was answered twice at once.")
                        accepted.append(self._checked(item, submission.person))
                    results.append({"id": item.id, "ok": True})
                except Refusal as refusal:
                    results.append({"id": item.id, "ok": False, "reason": str(refusal)})
            if accepted:
                self.log.append(accepted)
            for item, result in zip(submission.items, results, strict=True):
                if item.index in self._guess or self._path(item):
                    self._update_open(item.index)
                    result["image"] = self._record(item.index, submission.person)
            self._changed.notify_all()
            return results

    def take(self, submission: Submission) -> list[Record]:
        """Returns the images that a page should show next, which no other page gets until it is gone."""
        with self._changed:
            self._hear(submission.tab, submission.person)
            self._expire()
            if self._is_closed:
                return []
            person = submission.person
            free = [index for index in self._open if self._leases.get(index, submission.tab) == submission.tab]
            free = [index for index in free if not self._has_answered(index, person)]
            free.sort(
                key=lambda index: (self._skipped_at(index, person), index != submission.showing, self._open[index])
            )
            chosen = (same_guess(free, self._guess) if submission.grid else free)[: submission.want]
            self._leases = {index: tab for index, tab in self._leases.items() if tab != submission.tab}
            self._leases |= dict.fromkeys(chosen, submission.tab)
            return [self._record(index, person) for index in chosen]

    def leave(self, tab: str) -> None:
        """Gives the images of a page to others."""
        with self._changed:
            self._tabs.pop(tab, None)
            self._expire()

    def review(self, person: str) -> list[Record]:
        """Returns answered images for a second look: unsure ones, one's own that differ from the guess, recent ones."""
        with self._changed:
            answers = [answer for answer in self.log.all_current() if answer.action in ANSWERED]
            if self.log.by_person:  # nobody sees the others' answers
                answers = [answer for answer in answers if self.log.current(answer.path, person) == answer]
            answers.sort(key=lambda answer: answer.time, reverse=True)
            answers.sort(
                key=lambda answer: (not answer.unsure, answer.person != person, answer.guess in ("", answer.label))
            )
            known = [self._index_of[answer.path] for answer in answers if answer.path in self._index_of]
            return [self._record(index, person) for index in known[:MAX_REVIEWED]]

    def overview(self) -> Record:
        """Returns the classes and the progress of the batch."""
        with self._changed:
            answers = [answer for answer in self.log.all_current() if answer.action in ANSWERED]
            batch = self._batch
            own = [answer for answer in answers if batch is not None and answer.cycle == batch.cycle]
            times = [answer.seconds for answer in answers[-RECENT:] if answer.seconds is not None]
            held = Counter(self._tabs[tab][1] for tab in self._leases.values() if tab in self._tabs)
            return {
                "labeling": not self._is_closed,
                "classes": self._classes(),
                "new_classes": self.new_classes,
                "size": 0 if batch is None else len(batch.index),
                "open": len(self._open),
                "skipped": sum(map(self._is_skipped, self._open)),
                "needs_label": self._needs_label(),
                "annotators": self.annotators,
                "rejected": sum(answer.action == "reject" for answer in answers),
                "answers": len(answers),
                "people": dict(Counter(answer.person for answer in own)),
                "held": dict(held),
                "seconds": round(median(times), 2) if times else None,
            }

    def is_asked(self, index: int) -> bool:
        """True if an image was in a batch, so that a page may show it."""
        with self._changed:
            return self._is_asked(index)

    def cycle_of(self, index: int) -> int:
        """Returns the cycle in whose batch an image was asked for."""
        with self._changed:
            return self._cycle_of(index)

    def pages_seen(self, since: float) -> tuple[int, int]:
        """Returns how many pages are open, and how many of them were heard of since a time of the clock."""
        with self._changed:
            self._expire()
            return len(self._tabs), sum(seen >= since for seen, _ in self._tabs.values())

    # Under the lock

    def _checked(self, item: Item, person: str) -> Answer:
        """Returns an answer as a line of the log; Refusal if it does not count."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        start = (item.id, now, person.strip(), item.action, self._cycle_of(item.index))
        if item.action == "class":
            return Answer(*start, label=self._new_class(item.label))
        if item.action == "finish":
            self._check_finish()
            return Answer(*start)
        path = self._path(item)
        if not path:
            raise Refusal("This image was not asked for.")
        current, is_open = self.log.current(path, person), not self._is_closed and item.index in self._places
        if item.replaces != self.log.last_id(path, person):
            raise Refusal(f"{current.person if current else 'Somebody'} was faster: this image has another answer now.")
        if item.action in ("skip", "undo") and not is_open:
            raise Refusal("The run has taken this batch: choose another class instead.")
        if item.action == "skip" and current is not None and current.action in ANSWERED:
            raise Refusal("This image has an answer: undo it first.")
        if item.action == "undo" and current is None:
            raise Refusal("There is nothing to undo.")
        if item.action == "label" and item.label not in self._classes():
            raise Refusal(f"{item.label} is no class.")
        guess, confidence = self._guess.get(item.index) or ("", None)
        return Answer(
            *start,
            path=path,
            label=item.label if item.action == "label" else "",
            unsure=item.unsure,
            note=item.note.strip(),
            seconds=item.seconds,
            guess=guess,
            confidence=None if confidence is None else round(confidence, 4),
            guess_shown=item.guess_shown and guess != "",
            replaces=item.replaces,
        )

    def _cycle_of(self, index: int) -> int:
        """Returns the cycle in whose batch an image was asked for; that of the current batch without an answer."""
        answers = self.log.answers(self.names[index]) if 0 <= index < len(self.names) else []
        if answers and index not in self._places:
            return answers[0].cycle
        return 0 if self._batch is None else self._batch.cycle

    def _new_class(self, name: str) -> str:
        name = name.strip()
        if not self.new_classes:
            raise Refusal("New classes are not allowed (oracle.new_classes=true allows them).")
        if not name or not name.isprintable():
            raise Refusal("A class needs a name.")
        if name in self._classes() or differs_by_case(name, self._classes()):
            raise Refusal(f"There is a class {name} already.")
        return name

    def _check_finish(self) -> None:
        if self._is_closed or len(self._open) != sum(map(self._is_skipped, self._open)):
            raise Refusal("There are images left to label.")
        if self._needs_label():
            raise Refusal("At least one image of the first batch needs a class.")

    def _path(self, item: Item) -> str:
        """Returns the path of an item's image; empty if it was not asked for."""
        return self.names[item.index] if self._is_asked(item.index) else ""

    def _is_asked(self, index: int) -> bool:
        return index in self._guess or (0 <= index < len(self.names) and self.log.is_known(self.names[index]))

    def _classes(self) -> list[str]:
        return [*self._known_classes, *(name for name in self.log.new_classes if name not in self._known_classes)]

    def _is_answered(self, index: int) -> bool:
        """True if an image has as many answers as it needs."""
        answers = self.log.answers(self.names[index])
        given = [answer.label for answer in answers if answer.action in ANSWERED]
        return not needs_answer(given, self.annotators, self.max_answers)

    def _has_answered(self, index: int, person: str) -> bool:
        answer = self.log.current(self.names[index], person)
        return answer is not None and answer.action in ANSWERED

    def _is_skipped(self, index: int) -> bool:
        """True if somebody has skipped an image of the batch."""
        return any(map(self._is_skip, self.log.answers(self.names[index])))

    def _is_skip(self, answer: Answer | None) -> bool:
        return self._batch is not None and answer is not None and answer[3:5] == ("skip", self._batch.cycle)

    def _skipped_at(self, index: int, person: str) -> str:
        """Returns when a person has skipped an image of the batch; empty if they have not."""
        answer = self.log.current(self.names[index], person)
        return answer.time if answer is not None and self._is_skip(answer) else ""

    def _update_open(self, index: int) -> None:
        if self._is_closed or index not in self._places:
            return
        if self._is_answered(index):
            self._open.pop(index, None)
            self._leases.pop(index, None)
        else:
            self._open[index] = self._places[index]

    def _needs_label(self) -> bool:
        """True if no image of the first batch has a class: nothing could be trained on it."""
        if self._batch is None or self._batch.cycle > 0:
            return False
        answers = (answer for index in self._places for answer in self.log.answers(self.names[index]))
        return not any(answer.action == "label" for answer in answers)

    def _is_complete(self) -> bool:
        if self._is_closed or self._batch is None or self._needs_label():
            return False
        return not self._open or (self._batch.cycle in self.log.finished and all(map(self._is_skipped, self._open)))

    def _record(self, index: int, person: str) -> Record:
        path, guess = self.names[index], self._guess.get(index)
        answer = self.log.current(path, person)
        shown = {} if answer is None else answer._asdict()
        guess = guess or ((answer.guess, answer.confidence or 0.0) if answer and answer.guess else None)
        return {
            "index": index,
            "path": path,
            "guess": guess[0] if guess else None,
            "confidence": guess[1] if guess else None,
            "replaces": self.log.last_id(path, person),
            "skipped": self._is_skip(answer),
            "answer": {key: shown[key] for key in ("action", "label", "person", "unsure", "note") if shown} or None,
        }

    def _hear(self, tab: str, person: str) -> None:
        self._tabs[tab] = self._clock(), person.strip()

    def _expire(self) -> None:
        oldest = self._clock() - LEASE_SECONDS
        self._tabs = {tab: seen for tab, seen in self._tabs.items() if seen[0] >= oldest}
        self._leases = {index: tab for index, tab in self._leases.items() if tab in self._tabs}


def same_guess(images: Iterable[int], guesses: Mapping[int, tuple[str, float] | None]) -> list[int]:
    """Returns the images whose guess is the most frequent one, surest first; none without guesses."""
    guessed = [(guess, index) for index in images if (guess := guesses.get(index)) is not None]
    if not guessed:
        return []
    frequent = Counter(name for (name, _), _ in guessed).most_common(1)[0][0]
    return [index for (name, _), index in sorted(guessed, key=lambda pair: -pair[0][1]) if name == frequent]
