"""`chat_template:` of a merge: `auto`, the name of a well-known format, or the template itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from apr.common.errors import AprError, UsageError

# The formats MergeKit has by name, as the models that brought them were trained on them.
_EACH = "{% for message in messages %}"
_ASKED = "{% endfor %}{% if add_generation_prompt %}"
NAMED = {
    "chatml": (
        _EACH
        + "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
        f"{_ASKED}{{{{ '<|im_start|>assistant\\n' }}}}{{% endif %}}"
    ),
    "llama3": (
        "{{ bos_token }}" + _EACH + "{{ '<|start_header_id|>' + message['role'] + "
        "'<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}"
        f"{_ASKED}{{{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}}}{{% endif %}}"
    ),
    "mistral": (
        "{{ bos_token }}{% set ns = namespace(system='') %}"
        + _EACH
        + "{% if message['role'] == 'system' %}"
        "{% set ns.system = message['content'] + '\\n\\n' %}{% elif message['role'] == 'user' %}"
        "{{ ' [INST] ' + ns.system + message['content'] + ' [/INST]' }}{% set ns.system = '' %}"
        "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
    "alpaca": (
        _EACH + "{% if message['role'] == 'system' %}{{ message['content'] | trim + '\\n\\n' }}"
        "{% elif message['role'] == 'user' %}"
        "{{ '### Instruction:\\n' + message['content'] | trim + '\\n\\n' }}"
        "{% else %}{{ '### Response:\\n' + message['content'] | trim + '\\n\\n' }}{% endif %}"
        f"{_ASKED}{{{{ '### Response:\\n' }}}}{{% endif %}}"
    ),
    "exaone": (
        _EACH + "{% if loop.first and message['role'] != 'system' %}"
        "{{ '[|system|][|endofturn|]\\n' }}{% endif %}"
        "{{ '[|' + message['role'] + '|]' + message['content'] }}"
        "{{ '\\n' if message['role'] == 'user' else '[|endofturn|]\\n' }}"
        f"{_ASKED}{{{{ '[|assistant|]' }}}}{{% endif %}}"
    ),
}


def chosen_template(asked: str, templates: Mapping[str, str | None]) -> tuple[str | None, str]:
    """(jinja source, or None to leave the donor's; what was chosen, for the user).

    asked: the setting. templates: of each input, by its name. Raises UsageError where the setting
    is neither a name known here nor a template.
    """
    if asked == "auto":
        votes = Counter(t.strip() for t in templates.values() if t)
        if not votes:
            return None, "chat template: no model has one"
        template, count = votes.most_common(1)[0]
        of = next(name for name, t in templates.items() if t and t.strip() == template)
        return template, f"chat template: that of {of}, which {count} of {len(templates)} have"
    if asked in NAMED:
        return NAMED[asked], f"chat template: {asked}"
    if "{" not in asked:
        raise UsageError(
            f"chat_template {asked!r} is no template",
            f"auto, {', '.join(NAMED)}, or the text of a template (jinja)",
        )
    from apr.text.chat import compile_template

    try:
        compile_template(asked)
    except AprError as error:
        raise UsageError(f"chat_template: {error}") from None
    return asked, "chat template: as given"
