"""A small language model that ships with the package, and the text it was trained on."""

from pathlib import Path

from guidedq.demo.text import DemoSplit, demo_text

__all__ = ["DemoSplit", "demo_folder", "demo_text"]


def demo_folder() -> Path:
    """Return the folder of the demo model, in the Hugging Face layout (float16 safetensors)."""
    return Path(__file__).parent / "model"
