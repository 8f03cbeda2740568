"""Chat templates as published ones are written, and chats: shared by the maker and the tests."""

from pathlib import Path

GOLDEN = Path(__file__).parent / "golden" / "chat.json"
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

TEMPLATES = {
    "chatml": """{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}""",
    "headers": """{% set loop_messages = messages %}
{% for message in loop_messages %}
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'
   + message['content'] | trim + '<|eot_id|>' %}
{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}
{{ content }}{% endfor %}
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}
""",
    "turns": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if (message['role'] == 'assistant') %}{% set role = 'model' %}
{% else %}{% set role = message['role'] %}{% endif %}
{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}""",
    "instructions": """{%- if messages[0]['role'] == 'system' -%}
{%- set system_message = messages[0]['content'] -%}{%- set rest = messages[1:] -%}
{%- else -%}{%- set rest = messages -%}{%- endif -%}
{{- bos_token }}
{%- set ns = namespace(index=0) -%}
{%- for message in rest -%}
{%- if message['role'] == 'user' -%}
{%- if loop.last and system_message is defined -%}
{{- '[INST] ' + system_message + '\n\n' + message['content'] + ' [/INST]' -}}
{%- else -%}{{- '[INST] ' + message['content'] + ' [/INST]' -}}{%- endif -%}
{%- elif message['role'] == 'assistant' -%}
{%- set ns.index = ns.index + 1 -%}
{{- ' ' + message['content'].strip() + eos_token -}}
{%- else -%}{{- raise_exception('Only user and assistant roles are supported!') -}}{%- endif -%}
{%- endfor -%}{{- '' if ns.index < 9 else ' ' -}}""",
    "tools": """{%- macro show(tool) -%}{{ tool | tojson(indent=2) }}{%- endmacro -%}
{%- if tools %}<|system|>{% for tool in tools %}{{ show(tool) }}{% endfor %}<|end|>
{% endif -%}
{%- for message in messages -%}
{%- if message.content == '' %}{% continue %}{% endif -%}
<|{{ message.role }}|>
{% generation %}{{ message.content | replace('\t', '    ') }}{% endgeneration %}<|end|>
{% if loop.index > 20 %}{% break %}{% endif -%}
{% endfor -%}
{{ {'thinking': thinking | default(false), 'names': ['a', 'ü', '<b>']} | tojson }}
{%- if add_generation_prompt %}<|assistant|>
{% endif %}""",
    "reversed": """{% set box = dict(seen=0) %}
{% for m in messages[::-1] %}{{ m.role[:1] | upper }}:
 {{- m['content'].split('\n')[-1] }} ({{ m.content | length }})
{{ ', ' if not loop.last }}{% endfor %}
{{ range(3) | list }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
  {{ box.seen }}{{ messages | map(attribute='role') | join('/') }}""",
}
TOOLS = [{"type": "function", "function": {"name": "größe", "parameters": {"x": [1, 2.5, None]}}}]
CHATS = {
    "one": [{"role": "user", "content": "  Hello, wörld! \n"}],
    "three": [
        {"role": "user", "content": 'What is <b>2 + 2</b>?\tSay "it".'},
        {"role": "assistant", "content": " It's 4.\nReally "},
        {"role": "user", "content": "日本語 👩‍🚀"},
    ],
    "system": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
    ],
}


def cases():
    """Yield (name, template, messages, whether the model's turn follows, more values)."""
    for name, source in TEMPLATES.items():
        for chat, messages in CHATS.items():
            for answer in (True, False):
                yield (
                    f"{name} {chat} {answer}",
                    source,
                    messages,
                    answer,
                    ({"tools": TOOLS} if name == "tools" and answer else {}),
                )
