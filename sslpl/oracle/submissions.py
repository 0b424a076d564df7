"""What the labeling page sends: answers and wishes, with their allowed values."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

Id = Annotated[str, Field(pattern=r"^[\w-]{8,64}$")]
Person = Annotated[str, Field(min_length=1, max_length=60, pattern=r"\S")]


class Item(BaseModel):
    """An answer as the page sends it."""

    id: Id
    action: Literal["label", "reject", "skip", "undo", "class", "finish"]
    index: int = -1  # position of the image in the pool
    label: Annotated[str, Field(max_length=200)] = ""
    unsure: bool = False
    note: Annotated[str, Field(max_length=2000)] = ""
    seconds: Annotated[float, Field(ge=0, le=1e6)] | None = None
    guess_shown: bool = False
    replaces: Annotated[str, Field(max_length=64)] = ""


class Submission(BaseModel):
    """What a page sends at once: answers, and how many images it wants to hold."""

    tab: Id
    person: Person
    items: Annotated[list[Item], Field(max_length=200)] = []
    want: Annotated[int, Field(ge=0, le=100)] = 8
    grid: bool = False  # images with the same guess
    showing: int = -1  # the image that the page goes on to show
