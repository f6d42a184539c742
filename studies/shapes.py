"""Model folders without weights for the small studies: configurations of many shapes and families with the embedded tokenizer.

python studies/shapes.py            # writes studies/models/, for `model.init: random`
"""

from pathlib import Path

from transformers import (
    BloomConfig,
    GPT2Config,
    GPTBigCodeConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from seqtune.models.loading import load_tokenizer
from seqtune.sections import ModelConfig

POSITIONS = 256
FOLDER = Path(__file__).parent / "models"


def llama(width: int, layers: int) -> PreTrainedConfig:
    """The embedded base's architecture in another size; heads of 64."""
    return LlamaConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64, intermediate_size=width * 43 // 16,
        max_position_embeddings=POSITIONS, tie_word_embeddings=True,
    )  # fmt: skip


def gpt_neo(width: int, layers: int, heads: int) -> PreTrainedConfig:
    """TinyStories' architecture (https://arxiv.org/abs/2305.07759): global and local attention in turn."""
    return GPTNeoConfig(
        hidden_size=width, num_layers=layers, num_heads=heads, attention_types=[[["global", "local"], layers // 2]],
        window_size=256, max_position_embeddings=POSITIONS,
    )  # fmt: skip


def shapes() -> dict[str, PreTrainedConfig]:
    """Name -> configuration."""
    width, layers, heads = 256, 4, 4
    shared = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": POSITIONS}
    names = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {
        **{f"llama-{w}x{n}": llama(w, n) for w, n in ((128, 2), (256, 4), (384, 6), (512, 8))},
        **{f"tinystories-{size}": gpt_neo(w, 8, 16) for size, w in (("1M", 64), ("3M", 128), ("8M", 256), ("28M", 512))},
        "gpt2": GPT2Config(**shared),
        "gpt-bigcode": GPTBigCodeConfig(**shared, multi_query=True),
        "gpt-neo": gpt_neo(width, layers, heads),
        "gpt-neox": GPTNeoXConfig(**names, intermediate_size=4 * width, max_position_embeddings=POSITIONS),
        "opt": OPTConfig(**names, ffn_dim=4 * width, word_embed_proj_dim=width, max_position_embeddings=POSITIONS),
        "bloom": BloomConfig(hidden_size=width, n_layer=layers, n_head=heads),
        "llama": llama(width, layers),
        "qwen2": Qwen2Config(
            **names, num_key_value_heads=1, intermediate_size=688, max_position_embeddings=POSITIONS, tie_word_embeddings=True
        ),
    }


if __name__ == "__main__":
    tokenizer = load_tokenizer(ModelConfig(name="builtin:base"))
    for name, config in shapes().items():
        config.vocab_size = len(tokenizer)
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, key, getattr(tokenizer, key))
        config.save_pretrained(FOLDER / name)
        tokenizer.save_pretrained(FOLDER / name)
    print(f"{len(shapes())} model folders in {FOLDER}")
