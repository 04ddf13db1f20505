"""Olive's passes over ONNX weights on an entry of the zoo; runs in an environment that has olive-ai and onnxruntime.

    python onnx_olive.py ENTRY TARGET.onnx NAME=VALUE...

`pass` is the pass's name, `block` its block size. With `mixed=N`, k-quant keeps the first and last eighth of the layers
and every N-th between in 8 bits, as the mixed recipes of Olive and llama.cpp do. Its SelectiveMixedPrecision takes
Hugging Face models only, its static and dynamic quantization call those of ONNX Runtime.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import onnx
from olive.model import ONNXModelHandler
from olive.passes.olive_pass import create_pass_from_dict

sys.path.insert(0, str(Path(__file__).parents[1]))

from zoo.entries import read_entry
from zoo.prepared import prepared


def main() -> None:
    """Run the pass."""
    entry, target = read_entry(Path(sys.argv[1])), Path(sys.argv[2])
    words = dict(word.split("=", 1) for word in sys.argv[3:])
    import olive.passes.onnx.hqq_quantization as hqq
    import olive.passes.onnx.kquant_quantization as kquant
    import olive.passes.onnx.rtn_quantization as rtn

    kind = next(getattr(module, words["pass"]) for module in (hqq, kquant, rtn) if hasattr(module, words["pass"]))
    options: dict[str, object] = {"block_size": int(words["block"]), "accuracy_level": 4}
    if words["pass"] == "OnnxBlockWiseRtnQuantization":
        options |= {"is_symmetric": False}
    if "mixed" in words:
        options["customized_weight_config"] = {name: {"bits": 8} for name in kept(entry.model, int(words["mixed"]))}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.onnx"
        onnx.save(prepared(onnx.load(str(entry.model))), str(source))
        made = create_pass_from_dict(kind, options, disable_search=True).run(
            ONNXModelHandler(model_path=str(source)), str(Path(folder) / "model.onnx")
        )
        onnx.save(onnx.load(made.model_path), str(target))
        shutil.rmtree(folder, ignore_errors=True)


def kept(path: Path, every: int) -> list[str]:
    """The layers that stay in 8 bits, of the matrix products with a stored weight."""
    graph = onnx.load(str(path)).graph
    stored = {tensor.name for tensor in graph.initializer}
    names = [node.name for node in graph.node if node.op_type == "MatMul" and stored & set(node.input)]
    edge = max(1, len(names) // 8)
    return [*names[:edge], *names[edge:-edge:every], *names[-edge:]]


if __name__ == "__main__":
    main()
