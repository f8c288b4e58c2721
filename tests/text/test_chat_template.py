"""Chat templates against transformers' apply_chat_template."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models

from apr.common.errors import AprError, UsageError
from apr.text import Tokenizer

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML_TOOLS = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}{{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou help with code.<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_query=messages|length - 1, tools_seen=false) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' %}
        {%- set ns.last_query = messages|length - 1 - loop.index0 %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {%- set ns.tools_seen = true %}
        {{- '<|im_start|>user\\n<tool_response>' ~ message.content }}
        {{- '</tool_response><|im_end|>\\n' }}
        {%- continue %}
    {%- endif %}
    {{- '<|im_start|>' + message.role }}
    {%- if message.reasoning_content is defined and loop.index0 > ns.last_query %}
        {{- '\\n<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>' }}
    {%- endif %}
    {%- if message.content is string %}{{- '\\n' + message.content }}{%- endif %}
    {%- for call in message.tool_calls or [] %}
        {{- '\\n<tool_call>' }}{{- (call.function or call) | tojson(indent=2) }}
        {{- '</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

HEADERS = """{{ bos_token }}
{%- macro header(role) -%}<|start_header_id|>{{ role }}<|end_header_id|>

{% endmacro %}
{%- if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y")[:0] %}{% endif %}
{%- for m in messages %}
{{- header(m.role) }}{{ m.content | trim }}<|eot_id|>
{%- endfor %}
{%- if add_generation_prompt %}{{ header("assistant") }}{% endif %}
"""

INSTRUCT = """{{ bos_token }}{% set system = '' %}
{% if messages[0]['role'] == 'system' %}
    {% set system = messages[0]['content'] + '\n\n' %}
    {% set rest = messages[1:] %}
{% else %}
    {% set rest = messages %}
{% endif %}
{% for message in rest %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('roles must alternate user/assistant') }}
    {% endif %}
    {% if message['role'] == 'user' %}
{{ '[INST] ' + (system if loop.last else '') + message['content'] + ' [/INST]' }}
    {% else %}
{% generation %}{{ message['content'] | trim + eos_token }}{% endgeneration %}
    {% endif %}
{% endfor %}
"""

TURNS = """{{ bos_token }}{% for message in messages %}
{% set role = 'model' if message.role == 'assistant' else message.role %}
{{ '<start_of_turn>' ~ role ~ '\n' }}
{%- if message.content is iterable and message.content is not string %}
    {%- for item in message.content %}
        {{- item.text | trim if item.type == 'text' else '<image>' }}
    {%- endfor %}
{%- else %}{{ message.content | trim }}
{%- endif %}
{{ '<end_of_turn>\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}
"""

FILTERS = """{% for m in messages | selectattr('role', 'ne', 'system') %}
{{ loop.index }}/{{ loop.length }}{{ ' last' if loop.last }} {{ m | tojson }} {{ m.items() | list }}
{%- for key, value in m | dictsort if key != 'role' %} {{ key }}={{ value }}{% endfor %}
{% endfor %}{{ {'a': 'é<&>"', 'b': [1, 2.5, true, none]} | tojson }} {{ dict(x=1) }} {{ 3 * '-' }}
{{ messages | map(attribute='role') | join(',') }} {{ range(3) | list }} {{ (2 ** 8) }}
"""

CHATS = {
    "one": [{"role": "user", "content": "Write a sort.\n"}],
    "system": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "  Hi <b>&amp;</b> {{ x }} "},
    ],
    "turns": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": " b ", "tool_calls": None},
        {"role": "user", "content": "日本 \u2028 é"},
    ],
    "reasoning": [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4", "thinking": "\nadd\n"},
    ],
    "tools": [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"type": "function", "function": {"name": "w", "arguments": {"x": 1}}}],
        },
        {"role": "tool", "content": "sunny"},
    ],
}
TEMPLATES = {
    "chatml": CHATML_TOOLS,
    "headers": HEADERS,
    "instruct": INSTRUCT,
    "turns": TURNS,
    "filters": FILTERS,
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "w", "description": "Wéather", "parameters": {"type": "object"}},
    }
]


def tokenizer(templates) -> Tokenizer:
    backend = Backend(models.BPE(vocab={"<s>": 0, "</s>": 1}, merges=[]))
    backend.add_special_tokens(["<s>", "</s>"])
    if isinstance(templates, str):
        templates = {"default": templates}
    return Tokenizer(backend, special_tokens=SPECIAL, chat_templates=templates)


def theirs(template, messages, **options):
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.BPE(vocab={"<s>": 0, "</s>": 1}, merges=[]))
    reference = PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)
    reference.chat_template = template
    return reference.apply_chat_template(messages, tokenize=False, **options)


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    "options",
    [{}, {"add_generation_prompt": True, "enable_thinking": False}, {"tools": TOOLS}],
    ids=["plain", "prompt", "with-tools"],
)
def test_renders_like_transformers(name, chat, options):
    template, messages = TEMPLATES[name], CHATS[chat]
    try:
        expected = theirs(template, messages, **options)
    except Exception:
        with pytest.raises(AprError, match="chat template"):
            tokenizer(template).render_chat(messages, **{"add_generation_prompt": False, **options})
        return
    options = {"add_generation_prompt": False, **options}
    assert tokenizer(template).render_chat(messages, **options) == expected


def test_most_of_these_templates_do_render():
    """Guards the test above: the branch for failures is the exception."""
    failed = 0
    for template in TEMPLATES.values():
        for messages in CHATS.values():
            try:
                tokenizer(template).render_chat(messages)
            except AprError:
                failed += 1
    assert failed <= 6


PREFILLED = [
    {"role": "user", "content": "Sort a list"},
    {"role": "assistant", "content": "Below is a script:\n```python\n"},
]
BLOCKS = [
    {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "Sure: "}]},
]


@pytest.mark.parametrize("name", ["chatml", "headers", "instruct", "turns"])
def test_prefilled_turns_like_transformers(name):
    template = TEMPLATES[name]
    expected = theirs(template, PREFILLED, continue_final_message=True)
    got = tokenizer(template).render_chat(PREFILLED, False, continue_final_message=True)
    assert got == expected
    assert got.rstrip().endswith("```python")


def test_prefilled_blocks_and_fields_like_transformers():
    expected = theirs(TURNS, BLOCKS, continue_final_message=True)
    assert tokenizer(TURNS).render_chat(BLOCKS, False, continue_final_message=True) == expected
    thinking = [PREFILLED[0], {"role": "assistant", "content": "4", "thinking": "add"}]
    field = {"continue_final_message": "reasoning_content"}
    expected = theirs(CHATML_TOOLS, thinking, **field)
    assert tokenizer(CHATML_TOOLS).render_chat(thinking, False, **field) == expected
    assert expected.endswith("<think>\nadd")


CONCATENATES = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }};{% endfor %}"
PRINTS = "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"
AS_JSON = "{% for m in messages %}{{ m.role }}: {{ m.content | tojson }};{% endfor %}"
PARTS_ONLY = """{% for m in messages %}{{ m.role }}: {% for part in m.content -%}
{{ part.text if part.type == 'text' }}{% endfor %};{% endfor %}"""
STRICT = """{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}
{%- for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"""


@pytest.mark.parametrize("template", [CONCATENATES, PRINTS, AS_JSON, PARTS_ONLY, STRICT, TURNS])
def test_parts_and_text_give_the_same(template):
    """What transformers gives for the form that the template was written for."""
    roles = ("system", "user", "assistant")
    plain = [{"role": role, "content": f"{role} says"} for role in roles]
    parts = [
        {
            "role": role,
            "content": [{"type": "text", "text": role}, {"type": "text", "text": " says"}],
        }
        for role in roles
    ]
    bare = [{"role": role, "content": [f"{role} says"]} for role in roles]
    single = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in plain]
    want = theirs(template, single if template == PARTS_ONLY else plain)
    for messages in (plain, single, parts, *([bare] if template != PARTS_ONLY else [])):
        assert tokenizer(template).render_chat(messages, False) == want
    assert "user says" in want


def test_messages_are_not_changed():
    before = json.dumps(PREFILLED)
    tokenizer(CHATML_TOOLS).render_chat(PREFILLED, False, continue_final_message=True)
    assert json.dumps(PREFILLED) == before


def test_template_of_choice():
    many = tokenizer({"tool_use": "tools!", "default": "plain", "rag": "docs"})
    chat = CHATS["one"]
    assert many.render_chat(chat) == "plain"
    assert many.render_chat(chat, tools=TOOLS) == "tools!"
    assert many.render_chat(chat, chat_template="rag") == "docs"
    assert many.render_chat(chat, chat_template="{{ messages[0].role }}") == "user"
    with pytest.raises(AprError, match="none is the default: rag, tool_use"):
        tokenizer({"tool_use": "t", "rag": "r"}).render_chat(chat)
    with pytest.raises(AprError, match=r"no chat template \(pass one \(chat_template="):
        tokenizer({}).render_chat(chat)


def test_template_writes_all_special_tokens():
    reader = tokenizer("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}</s>")
    assert reader.encode_chat([{"role": "user", "content": ""}]) == [0, 1]


BAD = {
    "{% if %}": "line 1: Expected an expression",
    "a\n{{ messages | nosuch }}": "line 2: No filter named 'nosuch'",
    "{{ messages[0].content.nosuch.deeper }}": "has no attribute 'nosuch'",
    "{{ raise_exception('only\nuser roles') }}": "chat template: only user roles",
    "{{ nosuch() }}": "'nosuch' is undefined",
    "{{ 1 + messages }}": "unsupported operand",
    "{{ ''.__class__.__mro__ }}": "unsafe|undefined",
    "{{ messages.append(1) }}": "is unsafe",
    "{{ namespace(__class__=1) }}": "must not start with _",
    "{% set ns = namespace() %}{% set ns._x = 1 %}": "must not start with _",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "calls itself without end|stopped after",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(50) }}": (
        "stopped after"
    ),
    "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}": "stopped after",
    "{% for a in range(10**9) %}{% endfor %}": "Range too big",
    "{{ 'a' * 10**12 }}": "repetition longer than",
    "{{ [0] * 10**12 }}": "repetition longer than",
    "{{ 9 ** 999999999 }}": "exponent above",
}


@pytest.mark.parametrize("template", BAD)
def test_failures_are_one_line(template):
    with pytest.raises(AprError, match=BAD[template]) as caught:
        tokenizer(template).render_chat(CHATS["one"])
    assert "\n" not in str(caught.value)
    # The next rendering starts with a full budget.
    assert tokenizer("ok").render_chat(CHATS["one"]) == "ok"


def test_bad_messages_are_named():
    reader = tokenizer(CHATML_TOOLS)
    with pytest.raises(UsageError, match="list of messages is empty"):
        reader.render_chat([])
    with pytest.raises(UsageError, match="message 1 is str"):
        reader.render_chat([{"role": "user", "content": "x"}, "y"])
    with pytest.raises(UsageError, match="tool 0 is function"):
        reader.render_chat(CHATS["one"], tools=[tokenizer])
    with pytest.raises(UsageError, match="exclude each other"):
        reader.render_chat(PREFILLED, continue_final_message=True)
    with pytest.raises(UsageError, match="no text in 'content'"):
        reader.render_chat([{"role": "assistant"}], False, continue_final_message=True)
    for message, fault in (
        ({"content": "x"}, "no text in 'role'"),
        ({"role": "user"}, "no text in 'content'"),
        ({"role": "user", "content": None}, "no text in 'content'"),
        ({"role": "user", "content": 5}, "its content is int, not text"),
        ({"role": "user", "content": {"text": "x"}}, "its content is dict, not text"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "a part of type image_url"),
        ({"role": "user", "content": [{"type": "text"}]}, "a part without text"),
        ({"role": "user", "content": [3]}, "a part without text"),
    ):
        with pytest.raises(UsageError, match=f"message 1.*{fault}"):
            reader.render_chat([*CHATS["one"], message])
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {}}]}
    assert '"name": "f"' in reader.render_chat([call])
    with pytest.raises(AprError, match="message 1 has no content, which"):
        tokenizer(CONCATENATES).render_chat([*CHATS["one"], call])
    with pytest.raises(AprError, match="cannot be continued"):
        tokenizer("nothing").render_chat(PREFILLED, False, continue_final_message=True)


def test_objects_do_not_reach_the_template():
    class Rich:
        def danger(self):
            raise AssertionError("the template called a method of an object")

    message = {"role": "user", "content": "x", "image": Rich()}
    assert tokenizer("{{ messages[0].image }}").render_chat([message]) == "<Rich>"
