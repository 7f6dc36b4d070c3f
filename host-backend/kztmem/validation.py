# SPDX-License-Identifier: GPL-2.0-or-later
"""Between pydantic and this package's errors: key, message and hint survive the way."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

from kztmem.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydantic import ValidationError

T = TypeVar("T")
V = TypeVar("V")


class Strict(BaseModel):
    """Base of all models: an unknown key is an error, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def checked(check: Callable[[V], T], *kinds: type[V]) -> Callable[[object], T]:
    """A pydantic validator from a function that takes values of `kinds` and raises `BadInput`."""

    def validate(value: object) -> T:
        if not isinstance(value, kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise PydanticCustomError("bad_input", "not a {wanted}", {"wanted": wanted})
        try:
            return check(value)
        except BadInput as error:
            context = {"message": error.message, "hint": error.hint}
            raise PydanticCustomError("bad_input", "{message}", context) from error

    return validate


def problems(error: ValidationError, model: type[BaseModel]) -> Iterator[BadInput]:
    """What is wrong, one error for each key."""
    for details in error.errors(include_url=False, include_input=False):
        key = ".".join(str(part) for part in details["loc"])
        if details["type"] == "extra_forbidden":
            known = _keys(model)
            near = difflib.get_close_matches(str(details["loc"][-1]), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
            yield BadInput("unknown key", key=key, hint=hint)
        elif details["type"] == "missing":
            yield BadInput("this key is needed", key=key)
        else:
            yield BadInput(details["msg"], key=key, hint=details.get("ctx", {}).get("hint"))


def _keys(model: type[BaseModel]) -> list[str]:
    schema = model.model_json_schema()
    parts = [schema, *schema.get("$defs", {}).values()]
    return [key for part in parts for key in part.get("properties", {})]
