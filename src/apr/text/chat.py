"""Chat templates: a list of messages to the text a chat model was trained on.

Templates are programs by strangers. They run in jinja2's immutable sandbox, with the names that
model makers rely on (see https://huggingface.co/docs/transformers/chat_templating): `tojson`
without HTML escapes, `raise_exception`, `strftime_now`, `{% break %}`/`{% continue %}`, and a
`{% generation %}` block that only marks. They see plain data: no object with methods of its own.

Bounded: loop turns and calls together (STEP_LIMIT a rendering), repetition by `*`, and powers.
Not bounded: text that filters and string methods blow up in a single step (`|center(10**9)`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from apr.common.errors import AprError, UsageError

STEP_LIMIT = 1_000_000  # about a second
_CALL_STEPS = 5  # a call costs as much as five turns of a loop
REPEAT_LIMIT = 1_000_000
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
# Types of parts that are text, by OpenAI's two interfaces.
TEXT_PARTS = ("text", "input_text", "output_text")
_CONTINUE_MARK = "APR_FINAL_MESSAGE_GOES_ON "

_steps_left: ContextVar[list[int]] = ContextVar("steps_left")


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool | str = False,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """Fill a chat template.

    template: jinja2 source.
    messages: dicts with "role" and "content": text, or a list of parts, which are joined where all
        are text and the template takes text. Keys whose value is None are left out; content may
        be missing where tools are called.
    tools: JSON schemas of functions. documents: dicts with "title" and "text".
    add_generation_prompt: end with the header of an assistant turn.
    continue_final_message: leave the last message open, without its end-of-turn, so that the
        model goes on with it; a string names the field to continue instead of "content".
    variables: further names the template may read, special tokens among them.
    Raises UsageError for messages of the wrong shape, AprError where the template fails.
    """
    chat = [_plain_message(message, index) for index, message in enumerate(messages)]
    if not chat:
        raise UsageError("chat: the list of messages is empty", "give at least one message")
    for message in chat:
        if "content" in message:
            message["content"] = _in_form(template, message["content"])
    final_text = ""
    if continue_final_message:
        if add_generation_prompt:
            raise UsageError(
                "chat: continue_final_message and add_generation_prompt exclude each other",
                "a prefilled answer needs add_generation_prompt=False",
            )
        field = continue_final_message if isinstance(continue_final_message, str) else "content"
        final_text = _mark_final_message(chat[-1], field)
    context = {
        **_plain(dict(variables or {})),
        "messages": chat,
        "tools": _plain_tools(tools),
        "documents": _plain(documents),
        "add_generation_prompt": add_generation_prompt,
    }
    text = _run(template, context)
    return _cut_at_mark(text, final_text) if continue_final_message else text


def _run(template: str, context: dict[str, Any]) -> str:
    silent = next((i for i, m in enumerate(context["messages"]) if "content" not in m), None)
    compiled = compile_template(template)
    token = _steps_left.set([STEP_LIMIT])
    try:
        return compiled.render(context)
    except AprError:
        raise
    except RecursionError as error:
        raise AprError("chat template: it calls itself without end") from error
    except Exception as error:
        # Whatever a stranger's program raises is the template's failure, told in one line.
        reason = " ".join(str(error).split()) or type(error).__name__
        hint = "check the roles and their order, or pass another template"
        if silent is not None:
            hint = f'message {silent} has no content, which not all templates take: give it ""'
        raise AprError(f"chat template: {reason}", hint) from error
    finally:
        _steps_left.reset(token)


@lru_cache(maxsize=16)
def compile_template(template: str) -> jinja2.Template:
    """Compile (and remember) a template; AprError with the line number if it does not parse."""
    try:
        return _environment().from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise AprError(f"chat template, line {error.lineno}: {error.message}") from error


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    environment = _ChatEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.filters["_metered"] = _metered
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = _Namespace
    return environment


class _ChatEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox, with loops, calls and repetition counted."""

    intercepted_binops = frozenset({"*", "**"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "_metered", [], [], None, None, lineno=loop.lineno)
        return tree

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        _count_steps(_CALL_STEPS)
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            _check_repeat(left, right)
            _check_repeat(right, left)
        elif isinstance(right, int | float) and abs(right) > 64:
            raise SecurityError("an exponent above 64")
        return super().call_binop(context, operator, left, right)


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks the model's words; it changes no text."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 reads a plain class attribute)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [nodes.Scope(body, lineno=line)]


class _Namespace(jinja2.utils.Namespace):
    """jinja2's namespace, without names that would reach into Python's own attributes."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # `self` may be among the keywords.
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace may not hold {name!r}: names must not start with _")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _metered(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _count_steps(1)
        yield value


def _count_steps(steps: int) -> None:
    left = _steps_left.get()
    left[0] -= steps
    if left[0] < 0:
        raise AprError(f"chat template: stopped after {STEP_LIMIT} steps (loop turns and calls)")


def _check_repeat(value: Any, times: Any) -> None:
    repeats = isinstance(value, str | list | tuple) and isinstance(times, int)
    if repeats and len(value) * times > REPEAT_LIMIT:
        raise SecurityError(f"a repetition longer than {REPEAT_LIMIT}")


def _plain_message(message: Any, index: int) -> dict[str, Any]:
    check_message(message, f"chat: message {index}")
    plain = {key: value for key, value in _plain(message).items() if value is not None}
    # Model makers read a message's reasoning under different names.
    reasoning = next((plain[key] for key in _REASONING_KEYS if key in plain), None)
    if reasoning is not None:
        plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
    return plain


def check_message(message: Any, where: str) -> None:
    """Raises UsageError, which begins with `where`, unless a message has a role and content that is
    text, or parts that are.
    """
    if not isinstance(message, Mapping):
        raise UsageError(
            f"{where} is {type(message).__name__}, not an object",
            'each message looks like {"role": "user", "content": "…"}',
        )
    if not isinstance(message.get("role"), str):
        raise UsageError(f"{where} has no text in 'role'")
    content = message.get("content")
    if isinstance(content, list | tuple):
        for part in content:
            kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
            if kind not in TEXT_PARTS:
                raise UsageError(f"{where} has a part of type {kind}", "only text is read")
            if not isinstance(part.get("text") if isinstance(part, Mapping) else part, str):
                raise UsageError(f"{where} has a part without text")
    elif content is None:
        if not any(message.get(key) for key in ("tool_calls", *_REASONING_KEYS)):
            raise UsageError(f"{where} has no text in 'content'")
    elif not isinstance(content, str) and message["role"] != "tool":
        raise UsageError(f"{where}: its content is {type(content).__name__}, not text")


def _in_form(template: str, content: Any) -> Any:
    """Text and parts of a message in the form that the template shows."""
    if isinstance(content, str):
        if _shows(template, text=True) or not _shows(template, text=False):
            return content
        return [{"type": "text", "text": content}]
    if isinstance(content, list | tuple) and _shows(template, text=True):
        return "".join(part["text"] if isinstance(part, dict) else part for part in content)
    return content


@lru_cache(maxsize=64)
def _shows(template: str, *, text: bool) -> bool:
    """Whether a template shows the content of a user's message that is text, or a list of parts."""
    word = "aprshowsthis"
    content = word if text else [{"type": "text", "text": word}]
    message = {"role": "user", "content": content}
    context = {"messages": [message], "tools": None, "documents": None, "bos_token": ""}
    try:
        shown = _run(template, {**context, "add_generation_prompt": True})
    except AprError:
        return text  # it asks for more than one message: what most templates take
    # A list that is printed as such shows its keys as well.
    return word in shown and not re.search(r"""["']type["']""", shown)


def _plain_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[Any] | None:
    if tools is None:
        return None
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise UsageError(
                f"chat: tool {index} is {type(tool).__name__}", "give each tool as a JSON schema"
            )
    return _plain(list(tools))


def _plain(value: Any) -> Any:
    """JSON-like data only: whatever else is in it becomes the name of its type."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(inner) for inner in value)
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return f"<{type(value).__name__}>"


def _mark_final_message(message: dict[str, Any], field: str) -> str:
    """Put the mark at the end of the message's text; return the text without it."""
    content = message.get(field)
    if isinstance(content, str):
        names = [field]
        if field in _REASONING_KEYS:
            names = [key for key in _REASONING_KEYS if message.get(key) == content]
        for name in names:
            message[name] = content + _CONTINUE_MARK
        return content
    if isinstance(content, list | tuple):
        for block in reversed(content):
            if isinstance(block, dict) and isinstance(block.get("text"), str):
                text = block["text"]
                block["text"] = text + _CONTINUE_MARK
                return text
    raise UsageError(f"chat: the final message has no text in {field!r} to continue")


def _cut_at_mark(text: str, final_text: str) -> str:
    at = text.rfind(_CONTINUE_MARK.rstrip())
    if at < 0 or final_text.strip() not in text:
        raise AprError(
            "chat template: it drops or changes the final message, which cannot be continued",
            "use a template that prints the message as it is",
        )
    if text.startswith(_CONTINUE_MARK, at):
        return text[:at]
    # The template trims messages, so it would have trimmed the end of this one as well.
    return text[:at].rstrip()
