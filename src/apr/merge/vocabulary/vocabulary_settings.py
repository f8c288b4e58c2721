"""`tokenizer:` of MergeKit's YAML: whose vocabulary, and where the rows of single tokens come from.

Fields as in MergeKit's README, "Tokenizer Configuration". One is read more strictly: `force`
without a `source` is refused (MergeKit fails on it later).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    Tag,
    ValidationError,
    model_validator,
)

from apr.common.errors import UsageError
from apr.merge.recipe import ModelName, reference

_SOURCE_HINT = "a model, {kind: zero}, or {kind: model_token, model: …, token: … or token_id: …}"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ZeroEmbedding(_Strict):
    """A row of zeros."""

    kind: Literal["zero"]


class ModelToken(_Strict):
    """The row of another token: `token` or `token_id` of `model` (a label or path of an input)."""

    kind: Literal["model_token"]
    model: ModelName
    token: StrictStr | None = None
    token_id: Annotated[StrictInt, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> ModelToken:
        if (self.token is None) == (self.token_id is None):
            raise ValueError("give either token or token_id")
        return self


def _named(value: Any) -> Any:
    """A model written as a mapping by its name; what says its kind as it is."""
    return value if isinstance(value, dict) and "kind" in value else reference(value)


def _tag(value: Any) -> Any:
    if isinstance(value, str):
        return "model"
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)


class TokenEmbedding(_Strict):
    """source: whose row models take that have none of their own; a string names a model.

    None leaves it to the default (`plan_vocabulary`). force: all models take it.
    """

    source: (
        Annotated[
            Annotated[str, Tag("model")]
            | Annotated[ZeroEmbedding, Tag("zero")]
            | Annotated[ModelToken, Tag("model_token")],
            Discriminator(
                _tag, custom_error_type="source", custom_error_message=f"expected {_SOURCE_HINT}"
            ),
            BeforeValidator(_named),
        ]
        | None
    ) = None
    force: StrictBool = False

    @model_validator(mode="after")
    def _force_needs_source(self) -> TokenEmbedding:
        if self.force and self.source is None:
            raise ValueError(f"force needs a source: {_SOURCE_HINT}")
        return self


class TokenizerSettings(_Strict):
    """source: "union", "base" or a model (label or path). tokens: token to its embedding."""

    source: ModelName = "union"
    tokens: dict[str, TokenEmbedding] | None = None
    pad_to_multiple_of: Annotated[StrictInt, Field(ge=1)] | None = None


def parse_tokenizer_settings(value: Any, where: str = "tokenizer") -> TokenizerSettings:
    """Check what a YAML file says under `where`; UsageError names the first field that is wrong."""
    try:
        return TokenizerSettings.model_validate(value)
    except ValidationError as error:
        # Of a union pydantic puts the chosen branch into the path, which no user wrote.
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]]
        if len(path) > 3 and path[0] == "tokens" and path[2] == "source":
            del path[3]
        field = ".".join([where, *path])
        if first["type"] == "extra_forbidden":
            raise UsageError(f"{field}: unknown key", _known_keys(first["loc"])) from None
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{field}: {message}") from None


def _known_keys(loc: tuple[int | str, ...]) -> str:
    branches: dict[str, type[BaseModel]] = {"zero": ZeroEmbedding, "model_token": ModelToken}
    model: type[BaseModel] = TokenizerSettings
    if len(loc) > 3:
        model = branches[str(loc[3])]
    elif len(loc) > 1:
        model = TokenEmbedding
    return "known: " + ", ".join(model.model_fields)
