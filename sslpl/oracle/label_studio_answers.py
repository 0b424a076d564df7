"""What people have answered in a running Label Studio, entered into the log of answers as if the page had sent it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sslpl.oracle.answer_log import Answer
from sslpl.oracle.label_studio import CONTROL, annotator, chosen_classes, single_class, submitted_at
from sslpl.oracle.label_studio_project import NEW_CLASS, REJECT
from sslpl.oracle.labeling import ANSWERED, Labeling
from sslpl.oracle.submissions import Item, Submission

TAB = "label-studio"  # in place of the tab of a browser
MAX_PERSON, MAX_CLASS, MAX_SECONDS = 60, 200, 1e6  # of `Submission` and `Item`


class Reply(NamedTuple):
    """An annotation as an answer."""

    id: str  # of this version of the annotation, which counts once, however often it is read
    time: str  # on the server
    path: str
    person: str
    action: str  # label, reject or skip
    label: str = ""
    seconds: float | None = None


class Receiver:
    """Enters annotations into the answers of a run, each version of each annotation once."""

    def __init__(self, labeling: Labeling, guesses: bool, report: Callable[[str], None]) -> None:
        self.labeling, self._guesses, self._report = labeling, guesses, report
        self._index_of = {name: index for index, name in enumerate(labeling.names)}
        self._refused: set[str] = set()  # versions of annotations, each of which is reported once

    def receive(self, tasks: Sequence[Mapping[str, Any]], exists: Callable[[int], bool]) -> None:
        """Enters what is new in some tasks; `exists` says whether the server has an annotation."""
        for task in tasks:
            self._withdraw_deleted(task, exists)
        for each in sorted(self._new_replies(tasks), key=lambda each: each.time):
            self._enter(each)

    def _new_replies(self, tasks: Iterable[Mapping[str, Any]]) -> Iterable[Reply]:
        for task in tasks:
            path = str(task["data"]["path"])
            for annotation in task["annotations"]:
                name = version_id(annotation)
                if name in self.labeling.log.ids or name in self._refused or path not in self._index_of:
                    continue
                try:
                    yield reply(path, annotation)
                except ValueError as error:
                    self._refuse(name, path, str(error))

    def _withdraw_deleted(self, task: Mapping[str, Any], exists: Callable[[int], bool]) -> None:
        """Undoes the answers about an image whose annotation somebody has deleted while its batch was asked for."""
        path, present = task["data"]["path"], {annotation["id"] for annotation in task["annotations"]}
        while (current := self.labeling.log.current(path)) is not None:
            number = annotation_number(current)
            if number is None or number in present or exists(number) or not self._undo(current):
                return

    def _enter(self, answer: Reply) -> None:
        if answer.action == "skip":
            while (current := self.labeling.log.current(answer.path)) is not None and current.action in ANSWERED:
                if not self._undo(current):
                    self._refused.add(answer.id)  # the run has taken the batch
                    return
        if answer.action == "label" and answer.label not in self.labeling.overview()["classes"]:
            refusal = self._submit(answer.person, Item(id=f"{answer.id}-class", action="class", label=answer.label))
            if refusal:
                self._refuse(answer.id, answer.path, refusal)
                return
        refusal = self._submit(answer.person, self._item(answer))
        if refusal:
            self._refuse(answer.id, answer.path, refusal)

    def _item(self, answer: Reply) -> Item:
        about = {"index": self._index_of[answer.path], "replaces": self.labeling.log.last_id(answer.path)}
        given = {key: getattr(answer, key) for key in ("id", "action", "label", "seconds")}
        return Item.model_validate(about | given | {"guess_shown": self._guesses})

    def _undo(self, answer: Answer) -> bool:
        """Undoes an answer; returns False if it is too late."""
        about = {"index": self._index_of[answer.path], "replaces": self.labeling.log.last_id(answer.path)}
        item = Item.model_validate({"id": f"{answer.id}-undone", "action": "undo"} | about)
        return self._submit(answer.person, item) == ""

    def finish(self, id: str) -> None:
        """Ends the batch if all that is left of it was skipped: these images return to the pool."""
        overview = self.labeling.overview()
        if overview["labeling"] and overview["open"] == overview["skipped"] > 0 and not overview["needs_label"]:
            self._submit(TAB, Item(id=id, action="finish"))

    def _submit(self, person: str, item: Item) -> str:
        """Enters an item; returns why it was refused, empty if it was not."""
        (result,) = self.labeling.submit(Submission(tab=TAB, person=person, items=[item]))
        return "" if result["ok"] else str(result["reason"])

    def _refuse(self, name: str, path: str, why: str) -> None:
        self._refused.add(name)
        self._report(f"Label Studio: the answer about {path} does not count: {why}")


def reply(path: str, annotation: Mapping[str, Any]) -> Reply:
    """Returns an annotation as an answer: a skipped or empty one is a skip, a new class counts before a known one.

    ValueError if it has several classes.
    """
    start = version_id(annotation), submitted_at(annotation), path, person_of(annotation)
    seconds = annotation.get("lead_time")
    seconds = seconds if seconds is not None and 0 <= seconds <= MAX_SECONDS else None
    values: dict[str, list[Any]] = {}
    for result in annotation["result"]:
        values.setdefault(str(result.get("from_name")), []).append(result["value"])
    if annotation.get("was_cancelled"):
        return Reply(*start, "skip", seconds=seconds)
    if chosen_classes(values.get(REJECT)):
        return Reply(*start, "reject", seconds=seconds)
    new = [text for value in values.get(NEW_CLASS, []) for text in texts(value)]
    label = single_class(new or chosen_classes(values.get(CONTROL)))
    if len(label) > MAX_CLASS:
        raise ValueError(f"the name of a class has at most {MAX_CLASS} characters")
    return Reply(*start, "label" if label else "skip", label, seconds)


def texts(value: Mapping[str, Any]) -> list[str]:
    """Returns what was typed into a text field, which is a text or a list of texts."""
    text = value.get("text") or []
    return [each for each in ([text] if isinstance(text, str) else text) if each.strip()]


def version_id(annotation: Mapping[str, Any]) -> str:
    """Returns an id of an annotation as it is now: changed, it is another answer."""
    changed = "".join(character for character in submitted_at(annotation) if character.isdigit())
    return f"annotation-{annotation['id']}-{changed}"


def annotation_number(answer: Answer) -> int | None:
    """Returns the number of the annotation that gave an answer; None if it came from elsewhere."""
    parts = answer.id.split("-")
    return int(parts[1]) if parts[0] == "annotation" and len(parts) == 3 else None


def person_of(annotation: Mapping[str, Any]) -> str:
    """Returns the name and address of an annotator, or the number of the account if the server does not say them."""
    name = str(annotation.get("created_username") or "").rpartition(",")[0].strip()
    return (name or f"account {annotator(annotation.get('completed_by'))}")[:MAX_PERSON]
