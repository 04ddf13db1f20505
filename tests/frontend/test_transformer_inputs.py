"""What models of many kinds take and give: images, films, sounds, texts, and several of these at once."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from guidedq.errors import ModelError
from guidedq.frontend import load
from guidedq.frontend.transformer_module import main_output
from guidedq.ir.lifting import trial_batch
from guidedq.ir.model import Model, Objective

TEXT: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
}  # fmt: skip
IMAGE: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
SOUND: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "conv_dim": [8, 8],
    "conv_stride": [5, 4], "conv_kernel": [10, 8], "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
BART: dict[str, Any] = {
    "vocab_size": 40, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 16,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
BACKBONE: dict[str, Any] = {
    "embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic", "out_features": ["stage2"]
}  # fmt: skip
MASKED = ["input_ids", "attention_mask"]
MODELS: dict[str, tuple[Any, list[str], Objective]] = {
    "two towers": (
        lambda: hf.CLIPModel(
            hf.CLIPConfig(text_config=hf.CLIPTextConfig(**TEXT), vision_config=hf.CLIPVisionConfig(**IMAGE))
        ),
        [*MASKED, "pixel_values"],
        Objective.VALUES,
    ),
    "captions": (
        lambda: hf.BlipForConditionalGeneration(
            hf.BlipConfig(text_config={**TEXT, "encoder_hidden_size": 16}, vision_config=IMAGE)
        ),
        [*MASKED, "pixel_values"],
        Objective.LANGUAGE_MODEL,
    ),
    "image to text": (
        lambda: hf.VisionEncoderDecoderModel(
            hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
                hf.ViTConfig(**IMAGE),
                hf.GPT2Config(
                    vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=16, add_cross_attention=True,
                    is_decoder=True, bos_token_id=0, eos_token_id=2,
                ),
            )
        ),
        ["decoder_input_ids", "pixel_values"],
        Objective.LANGUAGE_MODEL,
    ),
    "detector": (
        lambda: hf.DetrForObjectDetection(
            hf.DetrConfig(
                use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
                backbone_config=hf.ResNetConfig(**BACKBONE), d_model=16, encoder_layers=1, decoder_layers=1,
                encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24,
                num_queries=3, num_labels=4,
            )
        ),
        ["pixel_values"],
        Objective.VALUES,
    ),
    "one of two classes of heads": (
        lambda: hf.DeiTForImageClassification(hf.DeiTConfig(**IMAGE, num_labels=3)),
        ["pixel_values"],
        Objective.CLASSIFIER,
    ),
    "film": (
        lambda: hf.VideoMAEForVideoClassification(
            hf.VideoMAEConfig(**IMAGE, num_frames=2, tubelet_size=2, num_labels=3)
        ),
        ["pixel_values"],
        Objective.CLASSIFIER,
    ),
    "wave": (lambda: hf.Wav2Vec2Model(hf.Wav2Vec2Config(**SOUND)), ["input_values"], Objective.VALUES),
    "spectrogram": (
        lambda: hf.ASTForAudioClassification(
            hf.ASTConfig(
                hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, patch_size=8,
                frequency_stride=8, time_stride=8, max_length=16, num_mel_bins=16, num_labels=3,
            )
        ),
        ["input_values"],
        Objective.CLASSIFIER,
    ),
    "class at the last token": (
        lambda: hf.BartForSequenceClassification(hf.BartConfig(**BART, num_labels=3)), MASKED, Objective.CLASSIFIER
    ),
    "two ends of an answer": (
        lambda: hf.BertForQuestionAnswering(hf.BertConfig(**TEXT)), [*MASKED, "token_type_ids"], Objective.VALUES
    ),
    "linear layers of its own": (
        lambda: hf.FalconForCausalLM(
            hf.FalconConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
        ),
        ["input_ids"],
        Objective.LANGUAGE_MODEL,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The model of a kind, as transformers built it and as it was loaded from a folder; each once."""
    made: dict[str, tuple[Any, Model]] = {}

    def of(kind: str) -> tuple[Any, Model]:
        if kind not in made:
            folder: Path = tmp_path_factory.mktemp("model")
            torch.manual_seed(0)
            original = MODELS[kind][0]().eval()
            original.save_pretrained(folder)
            made[kind] = original, load(folder)
        return made[kind]

    return of


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_is_given_what_it_needs_and_means_what_its_class_says(kind: str, loaded: Any) -> None:
    original, model = loaded(kind)
    assert [spec.name for spec in model.inputs] == MODELS[kind][1]
    assert model.objective is MODELS[kind][2]
    batch = trial_batch(model.inputs)
    with torch.no_grad():
        expected = main_output(original(**batch))
    torch.testing.assert_close(model.program.predict(batch), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear layers of its own", "class at the last token", "captions"])
def test_every_matrix_is_a_site(kind: str, loaded: Any) -> None:
    original, model = loaded(kind)
    matrices = {name for name, values in original.named_parameters() if values.dim() > 1}
    tables = {"vision_model.embeddings.class_embedding", "vision_model.embeddings.position_embedding"}
    assert {site.name for site in model.graph.sites} == matrices - tables


def test_both_ends_of_an_answer_count(loaded: Any) -> None:
    original, model = loaded("two ends of an answer")
    batch = trial_batch(model.inputs)
    with torch.no_grad():
        outputs = original(**batch)
    found = model.program.predict(batch)
    torch.testing.assert_close(found, torch.stack((outputs.start_logits, outputs.end_logits), dim=-1))


def test_weights_of_layers_that_are_not_called_are_told(loaded: Any) -> None:
    _, model = loaded("detector")
    assert any("model.query_position_embeddings.weight are not called" in notice for notice in model.notices)


def test_inputs_that_a_model_refuses_are_an_error_with_their_shapes(loaded: Any) -> None:
    _, model = loaded("class at the last token")
    batch = {**trial_batch(model.inputs), "input_ids": torch.full((2, 8), 5)}
    with pytest.raises(ModelError, match=r"does not run on input_ids \[2, 8\].*<eos>"):
        model.program.predict(batch)


def test_a_weight_that_is_also_read_outside_of_layers_is_no_site(tmp_path: Path) -> None:
    sizes = {**TEXT, "embedding_size": 8, "intra_bottleneck_size": 8, "true_hidden_size": 8}
    torch.manual_seed(0)
    hf.MobileBertForMaskedLM(hf.MobileBertConfig(**sizes)).save_pretrained(tmp_path)
    model = load(tmp_path)
    table = "mobilebert.embeddings.word_embeddings.weight"
    assert table not in [site.name for site in model.graph.sites]
    assert any("not only layers read" in notice and table in notice for notice in model.notices)
    assert "mobilebert.embeddings.embedding_transformation.weight" in [site.name for site in model.graph.sites]
