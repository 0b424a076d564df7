"""Checks values against annotated arguments, and suggests the known name closest to a misspelled one."""

import difflib
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from sslpl.types import UserError


def type_hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Returns the annotations of a function or of a class's constructor, with their ranges."""
    source = target.__init__ if inspect.isclass(target) else target
    return get_type_hints(source, include_extras=True)


def checked_value(path: str, value: Any, annotation: Any) -> Any:
    """Converts a value to its annotated type; UserError if it has another type or is out of range."""
    try:
        adapter = TypeAdapter(annotation, config={"strict": True, "arbitrary_types_allowed": True})
        return adapter.validate_python(value)
    except ValidationError as error:
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
        raise UserError(f"{path}={shown}: {allowed_values(annotation, error)}") from None


def allowed_values(annotation: Any, error: ValidationError) -> str:
    """Says what an annotation allows: its description if it has one, otherwise the messages of the error."""
    if get_origin(annotation) is Annotated:
        for extra in get_args(annotation)[1:]:
            if isinstance(extra, FieldInfo) and extra.description:
                return f"must be {extra.description}"
    messages = [item["msg"].replace("Input should be", "must be") for item in error.errors()]
    return " or ".join(dict.fromkeys(messages)).replace(" or must be", " or")


def nearest_name(word: str, known: list[str]) -> str:
    """Suggests the known name that is closest to a misspelled one, and lists all known names."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    listed = f"known: {', '.join(sorted(known))}"
    return f"did you mean {close[0]}? ({listed})" if close else listed
