"""The templates of text (`plain`, `continuation`, `tldr`) in Jinja, as chat templates of an exported tokenizer.

The forms of dialogues repeat what `as_text` writes; an export compares them with it.
"""

TURNS = (
    "{% for message in messages %}{% if loop.last and message['role'] == 'assistant' %}{{ '\\n\\nAssistant:' + "
    "('' if message['content'][:1].isspace() else ' ') + message['content'] }}{% else %}{{ {'user': '\\n\\nHuman: ', "
    "'assistant': '\\n\\nAssistant: ', 'system': ''}.get(message['role'], '\\n\\n' + message['role'] + ': ') + "
    "message['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
)
VERBATIM = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
SUMMARY = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ ' ' + message['content'].strip() }}"
    "{% else %}{{ message['content'].rstrip().removesuffix('TL;DR:').rstrip() + '\\n\\nTL;DR:' }}{% endif %}"
    "{% endfor %}"
)
TEXT = (  # a dialogue only if there are several turns
    "{% if messages[1:] | rejectattr('role', 'equalto', 'assistant') | list %}" + TURNS + "{% else %}" + VERBATIM
) + "{% endif %}"
