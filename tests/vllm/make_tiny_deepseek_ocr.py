"""``python make_tiny_deepseek_ocr.py DIRECTORY``: configuration and tokenizer of a tiny DeepSeek-OCR.

Run by the interpreter that has vLLM. The weights are made up by vLLM itself (``--load-format dummy``), the towers that
see the picture are made smaller by ``tiny_towers``. What the model says makes no sense.
"""

import json
import sys
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

CONTEXT = 8192
_BAR, _BLOCK = "\uff5c", "\u2581"
BEGIN, END, PAD = (
    f"<{_BAR}{name.replace(' ', _BLOCK)}{_BAR}>" for name in ("begin of sentence", "end of sentence", " pad ")
)
ADDED = ("<image>", "<|grounding|>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<td>", "</td>")
WIDTH = 64


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, and those that DeepSeek-OCR has besides."""
    tokens = [BEGIN, END, PAD, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    plain = Tokenizer(BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    plain.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in ADDED])
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, model_max_length=CONTEXT, bos_token=BEGIN, eos_token=END, pad_token=PAD
    )


def configuration(vocabulary: int, architecture: str = "DeepseekOCRForCausalLM") -> dict[str, Any]:
    language = {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "first_k_dense_replace": 1,
        "hidden_size": WIDTH,
        "intermediate_size": 128,
        "kv_lora_rank": None,
        "max_position_embeddings": CONTEXT,
        "moe_intermediate_size": 32,
        "n_group": 1,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_attention_heads": 2,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "q_lora_rank": None,
        "qk_nope_head_dim": 0,
        "qk_rope_head_dim": 0,
        "topk_group": 1,
        "topk_method": "greedy",
        "torch_dtype": "bfloat16",
        "use_mla": False,
        "v_head_dim": 0,
        "vocab_size": vocabulary,
    }
    return {
        "architectures": [architecture],
        "model_type": "deepseek_vl_v2",
        "candidate_resolutions": [[1024, 1024]],
        "global_view_pos": "head",
        "tile_tag": "2D",
        "torch_dtype": "bfloat16",
        "language_config": language,
        "projector_config": {
            "input_dim": 2048,
            "model_type": "mlp_projector",
            "n_embed": WIDTH,
            "projector_type": "linear",
        },
        "vision_config": {
            "image_size": 1024,
            "mlp_ratio": 3.7362,
            "model_name": "deeplip_b_l",
            "model_type": "vision",
        },
        "bos_token_id": 0,
        "eos_token_id": 1,
        "vocab_size": vocabulary,
    }


def main(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    made = tokenizer()
    made.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps(configuration(len(made)), indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
