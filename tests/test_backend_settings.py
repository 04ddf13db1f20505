import pytest

from guidedq.backend_settings import with_backend_settings
from guidedq.backends.onnx.backend import OnnxBackend
from guidedq.backends.packed_torch.backend import PackedTorchBackend
from guidedq.errors import BackendError, RecipeError


@pytest.mark.parametrize("setting", ["style=qdq", "onnx-style=qdq", "onnx_style = qdq", "backend.style=qdq"])
def test_an_option_of_the_backend_is_set_by_any_of_its_spellings(setting: str) -> None:
    backend, others = with_backend_settings(OnnxBackend(), ["min-bits=3", setting, "round.damping-fraction=0.1"])
    assert backend == OnnxBackend(style="qdq")
    assert others == ["min-bits=3", "round.damping-fraction=0.1"]


def test_the_last_of_several_settings_wins() -> None:
    assert with_backend_settings(OnnxBackend(), ["onnx-style=qdq", "style=baked"])[0] == OnnxBackend(style="baked")


@pytest.mark.parametrize("setting", ["onnx-style=qdq", "style=qdq"])
def test_an_option_of_another_backend_is_refused_with_its_name(setting: str) -> None:
    with pytest.raises(RecipeError, match="--backend onnx"):
        with_backend_settings(PackedTorchBackend(), [setting])


def test_a_wrong_value_or_option_is_refused_with_what_was_expected() -> None:
    with pytest.raises(RecipeError, match="native or qdq or baked"):
        with_backend_settings(OnnxBackend(), ["onnx-style=neat"])
    with pytest.raises(RecipeError, match="accuracy-level"):
        with_backend_settings(OnnxBackend(), ["backend.stile=qdq"])
    with pytest.raises(BackendError, match="opset 21"):
        with_backend_settings(OnnxBackend(), ["style=qdq", "opset=19"])
