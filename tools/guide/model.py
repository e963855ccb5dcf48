"""The guide's tokenizer, chat template and network, as a stock Hugging Face model folder.

Knows no question and no topic. Invariant: the folder loads with `AutoTokenizer` and `AutoModelForCausalLM` alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

PAD, BEGIN, USER, ASSISTANT, END = "<|pad|>", "<|begin|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL = [PAD, BEGIN, USER, ASSISTANT, END]

# Only the last user turn is rendered: a model of this size answers the question it is asked and would be misled by
# earlier turns or a system prompt. The rest repeats guide.data.normalise: lower case, no punctuation around words.
CHAT_TEMPLATE = """\
{#- Only the last user turn, and an answer begun to it, is rendered: the model was trained on single questions, in lower
    case and without punctuation. -#}
{%- set last = namespace(user='', answer=none) -%}
{%- for message in messages -%}
  {%- if message['content'] is string -%}
    {%- set text = message['content'] -%}
  {%- else -%}
    {%- set parts = message['content'] | default([], true) | selectattr('text', 'defined') -%}
    {%- set text = parts | map(attribute='text') | join(' ') -%}
  {%- endif -%}
  {%- if message['role'] == 'user' -%}
    {%- set last.user = text -%}
    {%- set last.answer = none -%}
  {%- elif message['role'] == 'assistant' -%}
    {%- set last.answer = text -%}
  {%- endif -%}
{%- endfor -%}
{%- set plain = namespace(text=last.user | lower) -%}
{%- for mark in ["'", '\u2019', '\u2018'] -%}
  {%- set plain.text = plain.text | replace(mark, '') -%}
{%- endfor -%}
{%- for mark in ['?', '!', ',', ';', ':', '"', '`', '(', ')', '[', ']', '*'] -%}
  {%- set plain.text = plain.text | replace(mark, ' ') -%}
{%- endfor -%}
{%- for mark in ['\u201c', '\u201d', '\u2026', '\u2014', '\u2013', '<|'] -%}
  {%- set plain.text = plain.text | replace(mark, ' ') -%}
{%- endfor -%}
{%- set words = plain.text.split() | map('trim', '.') | select -%}
{{- bos_token + '<|user|> ' + words | join(' ') + '<|assistant|>' -}}
{%- if last.answer is not none and not add_generation_prompt -%}
  {{- last.answer + eos_token -}}
{%- endif -%}
"""


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer of `vocabulary` entries learned from `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def prompt_ids(tokenizer: Tokenizer, question: str) -> list[int]:
    """Return the token ids of the rendered prompt of one normalised question.

    The space before the question makes its first word the same token as elsewhere.
    """
    ids: list[int] = tokenizer.encode(f"{BEGIN}{USER} {question}{ASSISTANT}").ids
    return ids


def build(vocabulary: int, *, width: int, layers: int, heads: int, inner: int, context: int) -> LlamaForCausalLM:
    """Return an untrained Llama with tied embeddings, in fp32."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        pad_token_id=SPECIAL.index(PAD),
        bos_token_id=SPECIAL.index(BEGIN),
        eos_token_id=SPECIAL.index(END),
    )
    return LlamaForCausalLM(config)


def save(folder: Path, model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    """Write the model folder: bf16 weights, tokenizer, chat template and greedy generation defaults."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config.do_sample = False
    model.generation_config.pad_token_id = SPECIAL.index(PAD)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.config.max_position_embeddings,
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": [USER, ASSISTANT],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "model.safetensors").chmod(0o644)
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
