"""Chat templates of the kinds that are in use, written anew, on small tokenizers of the kinds that carry them."""

from __future__ import annotations

from pathlib import Path

from conftest import build_model, build_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set told = '<<SYS>>\n' + messages[0]['content'].strip() + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set told = '' %}{% endif %}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + (told if loop.first else '') + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ '<|begin|>' }}{% for m in messages %}{{ '<|head|>' + m['role'] + '<|/head|>\n\n' + m['content'] | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# turn markers that the tokenizer lists as ordinary added tokens
DEEPSEEK = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}{% elif m['role'] == 'user' %}"
    "{{ '<｜User｜>' + m['content'] }}{% else %}{{ '<｜Assistant｜>' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)
# text of the template's own between prompt and answer
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if loop.last and m['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'].split('</think>')[-1] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# a system turn is refused, and the assistant is called model
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<|im_start|>' + role + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
MARKERS = ["<|im_start|>", "<|im_end|>", "<|begin|>", "<|head|>", "<|/head|>", "<|eot|>"]
KINDS = {
    "chatml": ("gpt2", CHATML, "<|im_end|>"),
    "llama2": ("llama", LLAMA2, "</s>"),
    "llama3": ("gpt2", LLAMA3, "<|eot|>"),
    "zephyr": ("llama", ZEPHYR, "</s>"),
    "deepseek": ("llama", DEEPSEEK, "</s>"),
    "thinking": ("gpt2", THINKING, "<|im_end|>"),
    "gemma": ("gpt2", GEMMA, "<|im_end|>"),
}


def chat_tokenizer(kind: str, template: str | None = None):
    """A tokenizer with a chat template of this kind, or with another one in its place."""
    from transformers import AddedToken

    family, own, _ = KINDS[kind]
    tokenizer = build_tokenizer(family)
    if family == "gpt2":
        tokenizer.add_special_tokens({"additional_special_tokens": MARKERS})
    if kind == "deepseek":
        tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in ("<｜User｜>", "<｜Assistant｜>")])
    if kind == "thinking":
        tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in ("<think>", "</think>")])
    tokenizer.chat_template = own if template is None else template
    return tokenizer


def chat_folder(folder: Path, kind: str, template: str | None = None) -> Path:
    """A small Llama with such a tokenizer."""
    tokenizer = chat_tokenizer(kind, template)
    build_model("llama", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
