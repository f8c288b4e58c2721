"""Which tokens end a completion: of the text, or of the model's turn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# Ends of a document. They end a completion whatever the chat template says.
END_OF_TEXT = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "<｜end▁of▁sentence｜>",
    "[EOS]",
)
# Ends of a turn. They count where the chat template writes them, or where there is no template
# that could tell.
END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|EOT|>",
    "<EOT>",
    "<|end_of_turn|>",
    "<|endofturn|>",
    "<end_of_utterance>",
)


def find_end_ids(
    declared: Iterable[int],
    special_tokens: Mapping[str, int],
    added_tokens: Mapping[str, int],
    templates: Iterable[str],
) -> frozenset[int]:
    """The ids at which a completion is over.

    declared: what the files name (eos_token, eos_token_id lists, GGUF eos/eot/eom ids).
    special_tokens, added_tokens: token to id; a model's vocabulary may spell `</s>` as an HTML
        tag, so only special tokens count, or added ones that a template writes.
    templates: the sources of all chat templates.
    """
    source = "\0".join(templates)
    ends = set(declared)
    ends.update(special_tokens[token] for token in END_OF_TEXT if token in special_tokens)
    for token in END_OF_TURN:
        if token in source and token in added_tokens:
            ends.add(added_tokens[token])
        elif not source and token in special_tokens:
            ends.add(special_tokens[token])
    # Harmony (gpt-oss) ends every message with <|end|>, but a turn only with <|return|> or
    # <|call|>: stopping at <|end|> would cut the answer off after the reasoning.
    if {"<|return|>", "<|call|>", "<|end|>"} <= added_tokens.keys():
        ends.discard(added_tokens["<|end|>"])
    return frozenset(ends)
