"""``python make_tiny_llama.py DIRECTORY``: a Llama of random weights, small enough for any machine, with its tokenizer.

Run by the interpreter that has vLLM, which brings torch and transformers. What the model says makes no sense; that it
loads, streams, counts tokens and keeps to its chat template and context is what tests need. The weights are the same
each time.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 32768
# The first ids; ordinary bytes follow.
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
# Of the tokens that stand for one printable character of ASCII each.
PRINTABLE = slice(3, 97)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte: no merges have to be learned."""
    tokens = [*SPECIAL.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    plain = Tokenizer(BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=plain, model_max_length=CONTEXT, **SPECIAL)
    made.chat_template = TEMPLATE
    return made


def model(vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(20)
    shape: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        # vLLM's attention on the CPU wants heads of at least 32.
        "head_dim": 32,
    }
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=CONTEXT, **shape, **ids)
    made = LlamaForCausalLM(config).to(torch.bfloat16)
    # The likeliest token is always a printable one: an answer at temperature 0 ends at its limit, and each token is a
    # piece of text, where a part of a character would be held back.
    said = torch.zeros(vocabulary, 1, dtype=torch.bfloat16)
    said[PRINTABLE] = 1.0
    made.lm_head.weight.data *= said
    return made


def main(directory: Path) -> None:
    made = tokenizer()
    made.save_pretrained(directory)
    model(len(made)).save_pretrained(directory)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
