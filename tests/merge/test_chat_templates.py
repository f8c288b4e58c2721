"""`chat_template:` of a merge."""

from __future__ import annotations

import pytest

from apr.common.errors import UsageError
from apr.merge.chat_templates import NAMED, chosen_template
from apr.text.chat import render_chat

CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": " Hi "},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
]
RENDERED = {
    "chatml": "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n"
    "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
    "<|im_start|>assistant\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe short.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s> [INST] Be short.\n\n Hi  [/INST] Hello.</s> [INST] Bye [/INST]",
    "alpaca": "Be short.\n\n### Instruction:\nHi\n\n### Response:\nHello.\n\n"
    "### Instruction:\nBye\n\n### Response:\n",
    "exaone": "[|system|]Be short.[|endofturn|]\n[|user|] Hi \n[|assistant|]Hello.[|endofturn|]\n"
    "[|user|]Bye\n[|assistant|]",
}


@pytest.mark.parametrize("name", NAMED)
def test_a_name_is_a_format_not_the_prompt(name: str) -> None:
    template, _ = chosen_template(name, {})
    assert template is not None
    variables = {"bos_token": "<s>", "eos_token": "</s>"}
    assert render_chat(template, CHAT, variables=variables) == RENDERED[name]


def test_auto_takes_what_most_models_have() -> None:
    templates = {"a": None, "b": "{{ 1 }}", "c": "{{ 2 }}", "d": "{{ 2 }}\n"}
    template, note = chosen_template("auto", templates)
    assert template == "{{ 2 }}" and "that of c, which 2 of 4 have" in note
    assert chosen_template("auto", {"a": "{{ 1 }}", "b": "{{ 2 }}"})[0] == "{{ 1 }}"
    assert chosen_template("auto", {"a": None})[0] is None


@pytest.mark.parametrize("asked", ["chatlm", "llama-3", "none", "./template.jinja", "{% for %}"])
def test_what_is_no_template_is_refused(asked: str) -> None:
    with pytest.raises(UsageError, match=r"chat_template|chat template, line 1") as error:
        chosen_template(asked, {})
    assert "\n" not in str(error.value)


def test_a_template_is_taken_as_it_is() -> None:
    assert chosen_template("{{ messages[0].content }}", {})[0] == "{{ messages[0].content }}"
