"""Transformers models of some thousand random weights, saved as Hugging Face folders, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

LLAMA = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {
    "vocab_size": 40,
    "n_embd": 24,
    "n_layer": 1,
    "n_head": 2,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BERT = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 36,
    "max_position_embeddings": 64,
}
T5 = {
    "vocab_size": 40,
    "d_model": 24,
    "d_kv": 6,
    "d_ff": 36,
    "num_layers": 1,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
WHISPER = {
    "vocab_size": 60,
    "d_model": 24,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 36,
    "decoder_ffn_dim": 36,
    "num_mel_bins": 8,
    "max_source_positions": 20,
    "max_target_positions": 20,
    "pad_token_id": 1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
}
MIXTRAL = {**LLAMA, "num_hidden_layers": 1, "num_local_experts": 4, "num_experts_per_tok": 2}
GPT_OSS = {**MIXTRAL, "head_dim": 6, "layer_types": ["full_attention"], "rope_parameters": {"rope_type": "default"}}
NEMOTRON = {
    "vocab_size": 40,
    "hidden_size": 24,
    "layers_block_type": ["attention", "moe"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 20,
    "moe_shared_expert_intermediate_size": 20,
    "intermediate_size": 44,
}
RESNET = {
    "embedding_size": 8,
    "hidden_sizes": [8, 12],
    "depths": [1, 1],
    "layer_type": "basic",
    "num_labels": 5,
    "image_size": 32,
}
FALCON_H1 = {
    **LLAMA,
    "mamba_d_ssm": 16,
    "mamba_n_heads": 2,
    "mamba_d_head": 8,
    "mamba_d_state": 4,
    "mamba_chunk_size": 8,
    "ssm_multipliers": [0.5, 2.0, 1.5, 0.75, 1.25],
    "pad_token_id": 0,
}
CLIP_TEXT = {**BERT, "projection_dim": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CONFIGURATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**LLAMA, "tie_word_embeddings": False}),
    "tied_llama": ("LlamaForCausalLM", "LlamaConfig", {**LLAMA, "tie_word_embeddings": True}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", MIXTRAL),
    "gpt_oss": ("GptOssForCausalLM", "GptOssConfig", GPT_OSS),
    "nemotron": ("NemotronHForCausalLM", "NemotronHConfig", NEMOTRON),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "olmo": ("OlmoForCausalLM", "OlmoConfig", {**LLAMA, "tie_word_embeddings": False}),
    "bert": ("BertModel", "BertConfig", BERT),
    "masked_bert": ("BertForMaskedLM", "BertConfig", BERT),
    "bert_classifier": ("BertForSequenceClassification", "BertConfig", {**BERT, "num_labels": 3}),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", WHISPER),
    "resnet": ("ResNetForImageClassification", "ResNetConfig", RESNET),
    "falcon_h1": ("FalconH1ForCausalLM", "FalconH1Config", FALCON_H1),
    "clip_text": ("CLIPTextModelWithProjection", "CLIPTextConfig", CLIP_TEXT),
}


def save_tiny_transformer(kind: str, folder: Path, dtype: torch.dtype = torch.float16) -> Path:
    """Build the model of that kind with seeded weights, round it to `dtype`, and save it into `folder`."""
    model_name, config_name, options = CONFIGURATIONS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, model_name)(getattr(transformers, config_name)(**options))
        for name, values in model.named_parameters():
            if "norm" in name.lower() or name.endswith("bias"):
                values.data.add_(0.1 * torch.randn_like(values))
    model.to(dtype).save_pretrained(folder)
    return folder
