"""Text: tokenizers, incremental decoding, stop strings, chat templates."""

from apr.text.chat import render_chat
from apr.text.fim import FimFormat, FimOrder, around, fim_format, fim_format_for
from apr.text.hf_folder import FIM_FILE, fim_file, fim_tokens_of
from apr.text.stream import StopMatcher, StreamDecoder
from apr.text.tokenizer import (
    Tokenizer,
    adapted_tokenizer,
    load_tokenizer,
    tokenizer_from_folder,
    tokenizer_from_gguf,
    vocabulary_difference,
)

__all__ = [
    "FIM_FILE",
    "FimFormat",
    "FimOrder",
    "StopMatcher",
    "StreamDecoder",
    "Tokenizer",
    "adapted_tokenizer",
    "around",
    "fim_file",
    "fim_format",
    "fim_format_for",
    "fim_tokens_of",
    "load_tokenizer",
    "render_chat",
    "tokenizer_from_folder",
    "tokenizer_from_gguf",
    "vocabulary_difference",
]
