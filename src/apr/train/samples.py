"""Training documents to look at: every token, coloured by whether it is learned."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from apr.text import Tokenizer
from apr.train.packing import Document

if TYPE_CHECKING:
    from rich.text import Text


def runs(document: Document, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """(text, learned) of each longest run of tokens that are all learned, or all not."""
    pairs = zip(document.ids.tolist(), document.trained.tolist(), strict=True)
    return [
        (tokenizer.decode([i for i, _ in group], skip_special_tokens=False), learned)
        for learned, group in groupby(pairs, key=lambda pair: pair[1])
    ]


def coloured(document: Document, tokenizer: Tokenizer) -> Text:
    """Learned text green, the rest dim; without colours, learned text stands in «»."""
    from rich.text import Text

    text = Text()
    for piece, learned in runs(document, tokenizer):
        text.append(f"«{piece}»" if learned else piece, style="green" if learned else "dim")
    return text


def sample_json(documents: Sequence[Document], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    return [
        {
            "tokens": len(document),
            "learned": document.targets,
            "text": [{"text": t, "learned": learned} for t, learned in runs(document, tokenizer)],
        }
        for document in documents
    ]
