"""What `apr data prep` is asked to do: its flags. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from apr.common.errors import UsageError
from apr.common.settings import check, option

TEXT = "text"
KINDS = ("docstring-to-code", "complete", "document", TEXT)


@dataclass(frozen=True)
class PrepSettings:
    """kind: what is asked for; with several, each definition is asked for in one way, drawn by the
    seed. limit: most pairs, drawn by the seed. methods: also those of classes, each alone.
    """

    kind: tuple[str, ...] = option(
        KINDS[:1],
        "docstring-to-code, complete (from signature and docstring), document (write the docstring)"
        " or text (the code alone); several: one of them for each.",
        repeated=True,
    )
    methods: bool = option(False, "Also the methods of classes.")
    min_length: int = option(80, "Shortest response that is kept, in characters.", least=0)
    max_length: int = option(3000, "Longest response that is kept, in characters.")
    limit: int | None = option(None, "Most pairs, drawn by the seed.", least=1)
    seed: int = option(0, "The same seed draws the same wordings, kinds and pairs.")

    def __post_init__(self) -> None:
        check(self)
        unknown = next((kind for kind in self.kind if kind not in KINDS), None)
        if unknown is not None or not self.kind:
            raise UsageError(f"`kind` {unknown or ''} is unknown", f"of {', '.join(KINDS)}")
        if self.min_length > self.max_length:
            raise UsageError(
                f"`min_length` {self.min_length} and `max_length` {self.max_length} leave nothing"
            )
