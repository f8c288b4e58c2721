"""What the parameters of merge methods may be: a type, a range, a default.

Values are read as MergeKit reads them: numbers, true and false may be written as text, which is
what YAML makes of 1e-9.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from apr.common.errors import UsageError

REQUIRED = object()  # in place of a default

# Methods compute in fp32, so a number must be one there too.
NUMBER = Annotated[float, Field(allow_inf_nan=False, ge=-3e38, le=3e38)]
POSITIVE = Annotated[float, Field(gt=0, le=3e38)]
SHARE = Annotated[float, Field(ge=0, le=1)]
PROPER_SHARE = Annotated[float, Field(ge=0, lt=1)]
COUNT = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Parameter:
    """kind: a type as pydantic reads it. default: REQUIRED where there is none."""

    kind: Any
    default: Any = REQUIRED

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.kind)

    def read(self, value: Any, key: str, where: str) -> Any:
        """A value as the method takes it. Raises UsageError naming key, value and `where`."""
        try:
            return self._adapter.validate_python(value)
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Input ")
            raise UsageError(f"{key} {value!r} of {where} {message}") from None
