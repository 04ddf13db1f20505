"""The zoo's models of images: ResNet-20 on CIFAR-10, and PP-OCRv4 on rendered text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from PIL import Image, ImageDraw, ImageFont

from .entries import Arrays, Facts, write_entry
from .sources import Sources, store

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the images that ResNet-20 was trained on."""
LINE_HEIGHT, LINE_WIDTH, DIRECTION_WIDTH, PAGE = 48, 320, 192, 320
"""Pixels of what the three OCR models take here."""
LINES, DIRECTIONS, PAGES = (96, 160), (256, 1024), (24, 32)
"""Samples for calibration and evaluation."""
LONGEST_LINE = 28
"""Characters that fit into a line in the largest letters."""
CHARACTERS = "character"
"""The key under which the recognition model keeps its alphabet; class 0 is the blank, the last the space."""
SOURCE = "PP-OCRv4 of rapidocr-onnxruntime 1.4.4"


def resnet(sources: Sources, folder: Path) -> None:
    """ResNet-20 with the images of CIFAR-10."""
    store(onnx.load(str(sources.find("cifar10/resnet20.onnx"))), folder)
    parts: dict[str, Arrays] = {}
    for part in ("calibration", "evaluation"):
        with np.load(sources.find(f"cifar10/{part}.npz")) as images:
            pixels = (images["x"] / 255 - np.array(MEAN)) / np.array(DEVIATION)
            parts[part] = {"input": pixels.transpose(0, 3, 1, 2).astype(np.float32), "labels": images["y"]}
    facts = Facts(
        family="cnn", output="logits", meaning="logits", task="classes", batch=64,
        source="akamaster/pytorch_resnet_cifar10",
    )  # fmt: skip
    write_entry(folder, facts, **parts, task={"labels": parts["evaluation"]["labels"]})


def recognition(sources: Sources, folder: Path) -> None:
    """Lines of text to characters, by step."""
    model = onnx.load(str(sources.find("rapidocr-onnxruntime/ch_PP-OCRv4_rec_infer.onnx")))
    alphabet = next(entry.value for entry in model.metadata_props if entry.key == CHARACTERS).splitlines()
    classes = {character: index for index, character in enumerate(alphabet, start=1)} | {" ": len(alphabet) + 1}
    words, draw = _lines(sources), sources.generator()
    store(model, folder)
    parts: dict[str, Arrays] = {}
    for part, count in zip(("calibration", "evaluation"), LINES, strict=True):
        texts = [next(words) for _ in range(count)]
        parts[part] = {"x": np.stack([_pixels(line_image(text, LINE_WIDTH, draw)) for text in texts])}
        if part == "evaluation":
            coded = np.zeros((count, LONGEST_LINE), np.int64)
            for row, text in zip(coded, texts, strict=True):
                row[: len(text)] = [classes.get(character, 0) for character in text]
            parts["task"] = {"text": coded}
    output = model.graph.output[0].name
    facts = Facts(family="ocr", output=output, meaning="probabilities", task="lines", batch=8, source=SOURCE)
    write_entry(folder, facts, **parts)


def direction(sources: Sources, folder: Path) -> None:
    """Whether a line of text stands on its head."""
    model = onnx.load(str(sources.find("rapidocr-onnxruntime/ch_ppocr_mobile_v2.0_cls_infer.onnx")))
    words, draw = _lines(sources), sources.generator()
    store(model, folder)
    parts: dict[str, Arrays] = {}
    for part, count in zip(("calibration", "evaluation"), DIRECTIONS, strict=True):
        labels = draw.integers(0, 2, count)
        images = [line_image(next(words)[:18], DIRECTION_WIDTH, draw) for _ in range(count)]
        turned = [image.rotate(180) if label else image for image, label in zip(images, labels, strict=True)]
        parts[part] = {"x": np.stack([_pixels(image) for image in turned]), "labels": labels}
    output = model.graph.output[0].name
    facts = Facts(family="ocr", output=output, meaning="probabilities", task="classes", batch=32, source=SOURCE)
    write_entry(folder, facts, **parts, task={"labels": parts["evaluation"]["labels"]})


def detection(sources: Sources, folder: Path) -> None:
    """Pages to maps of where text is."""
    model = onnx.load(str(sources.find("rapidocr-onnxruntime/ch_PP-OCRv4_det_infer.onnx")))
    words, draw = _lines(sources), sources.generator()
    store(model, folder)
    parts: dict[str, Arrays] = {}
    for part, count in zip(("calibration", "evaluation"), PAGES, strict=True):
        parts[part] = {"x": np.stack([_pixels(_page(words, draw)) for _ in range(count)])}
    facts = Facts(
        family="ocr", output=model.graph.output[0].name, meaning="values", task="threshold", threshold=0.3, batch=4,
        source=SOURCE,
    )  # fmt: skip
    write_entry(folder, facts, **parts)


def line_image(text: str, width: int, draw: np.random.Generator) -> Image.Image:
    """One line of black or coloured text on paper, a little uneven, padded on the right as the tools pad it."""
    paper, ink = _colours(draw)
    image = Image.new("RGB", (width * 3, LINE_HEIGHT), paper)
    font = ImageFont.load_default(int(draw.integers(20, 36)))
    box = ImageDraw.Draw(image).textbbox((0, 0), text, font=font)
    top = (LINE_HEIGHT - box[3] - box[1]) // 2 + int(draw.integers(-3, 4))
    ImageDraw.Draw(image).text((6, top), text, font=font, fill=ink)
    image = image.crop((0, 0, min(int(box[2]) + 12, 3 * width), LINE_HEIGHT))
    if image.width > width:
        image = image.resize((width, LINE_HEIGHT), Image.Resampling.BILINEAR)
    noisy = _noisy(image, draw)
    grey = Image.new("RGB", (width, LINE_HEIGHT), (127, 127, 127))  # what is padded is zero once it is normalised
    grey.paste(noisy, (0, 0))
    return grey


def _page(words: _Words, draw: np.random.Generator) -> Image.Image:
    """A page with some lines here and there."""
    paper, ink = _colours(draw)
    image = Image.new("RGB", (PAGE, PAGE), paper)
    top = int(draw.integers(4, 30))
    while top < PAGE - 30:
        size = int(draw.integers(10, 26))
        place = (int(draw.integers(2, 90)), top)
        ImageDraw.Draw(image).text(place, next(words), font=ImageFont.load_default(size), fill=ink)
        top += size + int(draw.integers(4, 40))
    return _noisy(image, draw)


def _colours(draw: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    paper = tuple(int(value) for value in draw.integers(150, 256, 3))
    ink = tuple(int(value) for value in draw.integers(0, 90, 3))
    return (paper, ink) if draw.random() < 0.8 else (ink, paper)


def _noisy(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    values = np.asarray(image, np.float32)
    return Image.fromarray(np.clip(values + draw.normal(0, 6, values.shape), 0, 255).astype(np.uint8))


def _pixels(image: Image.Image) -> np.ndarray:
    return (np.asarray(image, np.float32).transpose(2, 0, 1) / 255 - 0.5) / 0.5


class _Words:
    """Lines of words, without end; every one is new as long as the text lasts."""

    def __init__(self, text: str, draw: np.random.Generator) -> None:
        self.words, self.draw = text.split(), draw

    def __next__(self) -> str:
        start = int(self.draw.integers(0, len(self.words) - 8))
        text = ""
        for word in self.words[start : start + int(self.draw.integers(1, 6))]:
            if len(text) + len(word) >= LONGEST_LINE:
                break
            text = f"{text} {word}".strip()
        return text or str(self.draw.integers(0, 10**8))


def _lines(sources: Sources) -> _Words:
    text = sources.find("text/c4.txt").read_text(encoding="utf-8")
    return _Words("".join(character for character in text if character.isascii()), sources.generator())
