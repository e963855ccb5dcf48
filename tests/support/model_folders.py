"""Model folders for tests: real tokenizers, templates in the style of well-known families, weights of a few bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from llmws.engine_api import ModelRef

CORPUS = (
    "the quick brown fox jumps over the lazy dog. who are you? you are a helpful assistant; answer in one word!\n",
    "Ein Satz auf Deutsch mit Umlauten: äöü. 1234567890 + 42 = ? 'quoted' \"text\" <html> & more… 漢字 🙂\n",
)

CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA_3 = """{{- bos_token }}
{% if not date_string is defined %}
    {% set date_string = strftime_now("%d %b %Y") %}
{% endif %}
{% if messages[0]['role'] == 'system' %}
    {% set system_message = messages[0]['content'] | trim %}
    {% set messages = messages[1:] %}
{% else %}
    {% set system_message = "" %}
{% endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" + system_message }}
{{- "<|eot_id|>" }}
{% for message in messages %}
    {% if tools is not none %}{{ raise_exception("tools") }}{% endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{% endfor %}
{% if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{% endif %}
"""

GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

MISTRAL = """{%- set ns = namespace(system='', expected='user') -%}
{%- for message in messages -%}
  {%- if message.role == 'system' -%}
    {%- if not loop.first -%}{{ raise_exception('only the first message may be a system message') }}{%- endif -%}
    {%- set ns.system = message.content + '\\n\\n' -%}
    {%- continue -%}
  {%- endif -%}
  {%- if message.role != ns.expected -%}
    {{ raise_exception('After the optional system message, roles must alternate') }}
  {%- endif -%}
  {%- if message.role == 'user' -%}
    {%- if loop.last -%}{{ '[INST] ' + ns.system + message.content + ' [/INST]' }}
    {%- else -%}{{ '[INST] ' + message.content + ' [/INST]' }}{%- endif -%}
    {%- set ns.expected = 'assistant' -%}
  {%- else -%}
    {% generation %}{{ ' ' + message.content + eos_token }}{% endgeneration %}
    {%- set ns.expected = 'user' -%}
  {%- endif -%}
{%- endfor -%}
"""

KITCHEN_SINK = """{{ {'b': '<é>', 'a': [1, 2.5, none, true]} | tojson }}
{{ {'b': 1, 'a': 2} | tojson(indent=2, sort_keys=true) }}
{% for message in messages %}
  {% if loop.index > 50 %}{% break %}{% endif %}
    {{ loop.index }}/{{ loop.length }}/{{ loop.revindex }}{{ ' last' if loop.last }} {{ message | tojson }}
{% endfor %}
{% for key, value in dict(x=1, y=2).items() %}{{ key }}={{ value }};{% endfor %}
{% macro say(text) %}[{{ text }}]{% endmacro %}{{ say(messages[-1].content.upper().strip()) }}
{{ '=' * 10 }}{{ 2 ** 10 }}{{ range(3) | list }}{{ documents is none }}{{ pad_token is defined }}{{ unheard_of }}
{%- for group in messages | groupby('role') %}{{ group.grouper }}:{{ group.list | length }} {% endfor %}
"""


def byte_level(*special: str, bos: str | None = None) -> Tokenizer:
    """A byte-level BPE, as GPT-2 and Llama 3 have; `bos` goes before every text that is encoded with special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(special),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def sentence_piece(*special: str) -> Tokenizer:
    """A BPE over pieces that begin with `▁` and fall back to bytes, as Gemma and Mistral have."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", *special, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def write_model(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    tokenizer_config: Mapping[str, object] = {},
    files: Mapping[str, str] = {},
    config: Mapping[str, object] = {},
) -> ModelRef:
    """Writes a model's folder, but for the weights, and returns what a scan would say of it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    default = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 10**30}
    (folder / "tokenizer_config.json").write_text(json.dumps({**default, **tokenizer_config}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 1000, **config}))
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    name = folder.name
    return ModelRef(name=name, path=f"models/{name}", location=str(folder), size_bytes=0, source="models")
