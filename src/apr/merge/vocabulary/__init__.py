"""The vocabulary of a merged model: how tokenizers differ, which rows every model contributes.

settings      MergeKit's YAML `tokenizer:`
differences   two tokenizers compared
plan          the output's tokenizer and its number of rows
extend        a tokenizer with further tokens
donors        where each row comes from
rows          any block of a model's rows in the output's order
"""

from apr.merge.vocabulary.alignment import VocabularyPlan, plan_vocabulary
from apr.merge.vocabulary.differences import VocabularyDifference, differences
from apr.merge.vocabulary.donors import Fetch, RowGather
from apr.merge.vocabulary.read import VocabularyInput, model_index
from apr.merge.vocabulary.vocabulary_settings import (
    ModelToken,
    TokenEmbedding,
    TokenizerSettings,
    ZeroEmbedding,
    parse_tokenizer_settings,
)

__all__ = [
    "Fetch",
    "ModelToken",
    "RowGather",
    "TokenEmbedding",
    "TokenizerSettings",
    "VocabularyDifference",
    "VocabularyInput",
    "VocabularyPlan",
    "ZeroEmbedding",
    "differences",
    "model_index",
    "parse_tokenizer_settings",
    "plan_vocabulary",
]
