"""Make a small LLaMA in Hugging Face layout, random weights, tied head: something to point `ckpt` at offline.

python samples/tiny_llama.py demo/llama
"""

import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging


def main(folder: str) -> None:
    torch.manual_seed(0)
    logging.disable_progress_bar()
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(Path(folder))
    print(f"a small LLaMA with random weights is in {folder}")


if __name__ == "__main__":
    main(sys.argv[1])
