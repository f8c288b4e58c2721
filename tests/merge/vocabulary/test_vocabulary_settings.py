from __future__ import annotations

from typing import Any

import pytest
import yaml

from apr.common.errors import UsageError
from apr.merge.vocabulary import (
    ModelToken,
    TokenEmbedding,
    ZeroEmbedding,
    parse_tokenizer_settings,
)

# Every form of MergeKit's README.
README = """
source: union
tokens:
  <|im_start|>:
    source: path/to/chatml/model
  <|special|>:
    source: path/to/model
    force: true
  <|renamed_token|>:
    source: {kind: model_token, model: path/to/model, token: <|original_token|>}
  <|numbered|>:
    source: {kind: model_token, model: path/to/model, token_id: 1234}
  <|unused|>:
    source:
      kind: zero
pad_to_multiple_of: 64
"""


def test_every_form_of_the_readme() -> None:
    found = parse_tokenizer_settings(yaml.safe_load(README))
    assert (found.source, found.pad_to_multiple_of) == ("union", 64)
    renamed = {"kind": "model_token", "model": "path/to/model"}
    assert found.tokens == {
        "<|im_start|>": TokenEmbedding(source="path/to/chatml/model"),
        "<|special|>": TokenEmbedding(source="path/to/model", force=True),
        "<|renamed_token|>": TokenEmbedding(
            source=ModelToken(**renamed, token="<|original_token|>")
        ),
        "<|numbered|>": TokenEmbedding(source=ModelToken(**renamed, token_id=1234)),
        "<|unused|>": TokenEmbedding(source=ZeroEmbedding(kind="zero")),
    }
    mapping = {"source": {"model": {"path": "b"}}}
    assert parse_tokenizer_settings({**mapping, "tokens": {"x": mapping}}).source == "b"
    nothing = parse_tokenizer_settings({})
    assert (nothing.source, nothing.tokens, nothing.pad_to_multiple_of) == ("union", None, None)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"padding": 1}, "tokenizer.padding: unknown key (known: source, tokens, pad_to_"),
        ({"tokens": {"<x>": {"from": 1}}}, "tokenizer.tokens.<x>.from: unknown key (known: source"),
        (
            {"tokens": {"<x>": {"source": {"kind": "zero", "model": "a"}}}},
            "tokenizer.tokens.<x>.source.model: unknown key (known: kind)",
        ),
        (
            {"tokens": {"<x>": {"source": {"kind": "mean"}}}},
            "tokenizer.tokens.<x>.source: expected a model, {kind: zero}",
        ),
        (
            {"tokens": {"<x>": {"source": {"kind": "model_token", "model": "a"}}}},
            "tokenizer.tokens.<x>.source: give either token or token_id",
        ),
        (
            {"tokens": {"<x>": {"source": {"kind": "model_token", "token": "y"}}}},
            "tokenizer.tokens.<x>.source.model: Field required",
        ),
        ({"tokens": {"<x>": {"force": True}}}, "tokenizer.tokens.<x>: force needs a source"),
        ({"tokens": {"<x>": {"source": 3}}}, "tokenizer.tokens.<x>.source: expected a model"),
        ({"pad_to_multiple_of": 0}, "tokenizer.pad_to_multiple_of: Input should be greater"),
        ({"pad_to_multiple_of": "8"}, "tokenizer.pad_to_multiple_of: Input should be a valid int"),
        ({"source": {"path": "a"}}, "tokenizer.source: Input should be a valid string"),
        ("union", "tokenizer: Input should be"),
    ],
)
def test_what_is_wrong_is_named(value: Any, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_tokenizer_settings(value)
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)
