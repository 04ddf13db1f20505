"""lm-evaluation-harness on a packed folder: the command and the task of docs/transformers.md, without a network."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from missing_tools import missing
from packed_folders import emit_demo
from transformers import AutoTokenizer

import guidedq

PAGE = Path(__file__).parents[2] / "docs" / "transformers.md"
TEXTS = ("import os\nprint(os.getcwd())\n", "def double(x):\n    return 2 * x  # of any kind\n", "for line in lines:")


def documented(opening: str, closing: str) -> str:
    """What stands in the page between two strings, which must be there."""
    found = re.search(re.escape(opening) + "(.*?)" + re.escape(closing), PAGE.read_text(), re.DOTALL)
    assert found, opening
    return found[1]


def bits_per_byte(folder: Path) -> float:
    """Of all texts, each read from the token that begins a document."""
    model, tokenizer = guidedq.load_quantized(folder), AutoTokenizer.from_pretrained(folder)
    nats = 0.0
    for text in TEXTS:
        tokens = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]])
        with torch.no_grad():
            logits = model(tokens).logits[0, :-1]
        nats += float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum"))
    return nats / math.log(2) / sum(len(text.encode()) for text in TEXTS)


@pytest.mark.slow
def test_the_documented_task_gives_the_bits_that_the_model_itself_gives(tmp_path):
    if importlib.util.find_spec("lm_eval") is None:
        missing("no lm_eval")
    (folder := tmp_path / "small").mkdir()
    emit_demo(folder)
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    task = documented("```yaml\n", "```").replace("/path/to/texts.jsonl", str(texts))
    (tmp_path / "my_text.yaml").write_text(task)
    code = documented('python -c "', '"')
    options = documented(f'python -c "{code}" \\\n', "\n").split()
    options[options.index("wikitext")] = "my_text"
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code, *options, "--include_path", str(tmp_path), "--output_path", "results"]
    done = subprocess.run(command, cwd=tmp_path, env=offline, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (results,) = (tmp_path / "results").rglob("*.json")
    found = json.loads(results.read_text())["results"]["my_text"]
    assert found["sample_len"] == len(TEXTS)
    assert found["bits_per_byte,none"] == pytest.approx(bits_per_byte(folder), rel=1e-5)
