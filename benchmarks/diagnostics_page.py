"""Fire each diagnostic through a real compile made for it, beside a healthy one, and write docs/diagnostics.md.

    python benchmarks/diagnostics_page.py            # run what is missing in the record, then write the page
    python benchmarks/diagnostics_page.py --page     # the page alone, after a change of words or thresholds

What a check is, its threshold and its advice are read from the code (`checks`), the numbers from the record.
"""

from __future__ import annotations

import argparse
import ast
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from records import Record

import guidedq
from guidedq.demo.text import demo_text

ROOT = Path(__file__).parents[1]
RECORD, PAGE = ROOT / "benchmarks" / "results" / "diagnostics.json", ROOT / "docs" / "diagnostics.md"
USUAL: Mapping[str, Any] = {"budget": "3.5bits", "samples": 32, "sequence_length": 128, "effort": "quick"}
DEMO_TOKENS = 41_795_584
"""As its card says."""
SMALL_NET: Mapping[str, Any] = {"budget": "7bits", "effort": "quick", "settings": ("scope=linear",)}
HEAD = """# Diagnostics: when not to trust a compile

Every report has these checks: a number, a threshold, a verdict and what to do. They use what was collected anyway.
`--strict` turns a warning into exit 3 and leaves nothing; a policy for `guidedq check` does so for reports
([README](../README.md)). Of a nested artifact each check is that of the narrowest precision that warns.

Below, *healthy* is the demo model at 3.5 bits, quick, of 32 sequences of 128 tokens, and *made to fire* a compile made
for the check, both by `benchmarks/diagnostics_page.py` (seed 0); what is said of a check is read from its code.
"""


@dataclass(frozen=True, kw_only=True)
class Check:
    """What the code says of a check: its question, bound, threshold with the reason, and advice with gaps for names."""

    name: str
    question: str
    bound: str
    threshold: str
    reason: str
    number: str
    advice: str


@dataclass(frozen=True, kw_only=True)
class Case:
    """A compile in which a check must warn, in words, and its arguments; they may write files into a folder."""

    words: str
    arguments: Callable[[Path], Mapping[str, Any]]


def checks() -> Iterator[Check]:
    """Every check of the package, as its file says it, in the order of the reports."""
    folder = ROOT / "guidedq" / "diagnostics"
    order = (folder / "diagnosis.py").read_text()
    files = [path for path in folder.glob("*.py") if f"        {path.stem}(" in order]
    for path in sorted(files, key=lambda path: order.index(f"        {path.stem}(")):
        tree = ast.parse(path.read_text())
        call = next(node for node in ast.walk(tree) if isinstance(node, ast.Call) and _function(node) in BOUNDS)
        limit = call.args[2]
        module = import_module(f"guidedq.diagnostics.{path.stem}")
        said = {keyword.arg: _text(keyword.value) for keyword in call.keywords}
        constant = limit.id if isinstance(limit, ast.Name) else ""
        yield Check(
            name=_text(call.args[0]),
            question=str(module.__doc__),
            bound=BOUNDS[_function(call)],
            threshold=_threshold(limit, module),
            reason=_reason(tree, constant or "EXCESS"),
            number=said["meaning"],
            advice=said["advice"],
        )


BOUNDS = {"at_most": "at most", "at_least": "at least"}


def _threshold(limit: ast.expr, module: ModuleType) -> str:
    """A threshold's value; of the one that is computed, in words."""
    if isinstance(limit, ast.Name):
        return f"{getattr(module, limit.id):,g}"
    return f"{limit.value:g}" if isinstance(limit, ast.Constant) else "half of the way from that share to all"


def _function(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _text(node: ast.expr) -> str:
    """A text of the code; what is filled in at run time as an ellipsis, what is added at times left out."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return _text(node.left) if isinstance(node, ast.BinOp) else "…"


def _reason(tree: ast.Module, constant: str) -> str:
    """The sentence below a constant, or nothing."""
    for statement, after in zip(tree.body, tree.body[1:], strict=False):
        named = isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
        if named and statement.targets[0].id == constant and isinstance(after, ast.Expr):  # pyright: ignore
            return " ".join(_text(after.value).split())
    return ""


def texts(folder: Path, name: str, text: str) -> Path:
    """A text file."""
    (folder / name).write_text(text)
    return folder / name


def network(folder: Path, *, outlier: float) -> Mapping[str, Any]:
    """A classifier of two branches, and inputs of which one is an outlier."""
    random = np.random.default_rng(0)
    shapes = {"small": (64, 3), "first": (64, 256), "last": (256, 3)}
    scales = {"small": 1 / 8, "first": 1 / 8, "last": 1 / 16}
    made = {name: (scales[name] * random.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("MatMul", ["x", "small"], ["a"]),
        helper.make_node("MatMul", ["x", "first"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "last"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["logits"]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "g", [given], [result], [numpy_helper.from_array(w, n) for n, w in made.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), folder / "net.onnx")
    inputs = random.normal(size=(400, 64)).astype(np.float32)
    inputs[:, 0] *= outlier
    np.savez(folder / "x.npz", x=inputs)
    return {**SMALL_NET, "model": folder / "net.onnx", "data": folder / "x.npz"}


def own_text() -> str:
    """What the demo model is evaluated on."""
    return "\n\n".join(demo_text("evaluation"))


def noise_text() -> str:
    """Letters that mean nothing."""
    random = np.random.default_rng(0)
    return "\n".join("".join(random.choice(list("qxzjkwvb#@%&"), 400)) for _ in range(120))


FEW = Case(words="`--samples 2 --sequence-length 32`", arguments=lambda _: {"samples": 2, "sequence_length": 32})
CASES: Mapping[str, Case] = {
    "shrinkage": FEW,
    "calibration-samples": FEW,
    "evaluation-noise": Case(
        words="`--eval-data` of a single sequence",
        arguments=lambda folder: {
            "data": texts(folder, "text.txt", own_text()[:400_000]),
            "eval_data": texts(folder, "short.txt", own_text()[-700:]),
        },
    ),
    "overlap": Case(
        words="`--data` that repeats one page",
        arguments=lambda folder: {"data": texts(folder, "again.txt", (own_text()[:6000] + "\n\n") * 60)},
    ),
    "text-fit": Case(
        words="`--data` of random letters",
        arguments=lambda folder: {"data": texts(folder, "noise.txt", noise_text())},
    ),
    "calibration-gap": Case(
        words="a guide that knows nothing of the end loss, `--set guide=hessian`",
        arguments=lambda _: {"settings": ("guide=hessian",)},
    ),
    "extrapolation": Case(words="`--budget 2bits`", arguments=lambda _: {"budget": "2bits"}),
    "narrowest-formats": Case(
        words="`--budget 2.6bits` with `--min-bits 2`, just above the smallest file",
        arguments=lambda _: {"budget": "2.6bits", "settings": ("min-bits=2",)},
    ),
    "activation-outliers": Case(
        words="a network one of whose inputs is 3,000 times as large, `--backend 'onnx{accuracy-level=4}'`",
        arguments=lambda folder: {**network(folder, outlier=3000.0), "backend": "onnx{accuracy-level=4}"},
    ),
    "over-training": Case(words="`--training-tokens 1e12`", arguments=lambda _: {"training_tokens": 1e12}),
}
HEALTHY = Case(words="healthy", arguments=lambda _: {"training_tokens": DEMO_TOKENS})


def diagnosed(case: Case, workspace: Path) -> list[dict[str, Any]]:
    """Compile a case; its diagnostics as plain values."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        arguments: dict[str, Any] = {"model": "demo", **USUAL, **case.arguments(folder)}
        if arguments["model"] != "demo":
            arguments = {name: value for name, value in arguments.items() if name not in ("samples", "sequence_length")}
        artifact = guidedq.compile(**arguments, workspace=workspace, out=folder / "out")
    return [
        {"name": one.name, "number": one.number, "threshold": one.threshold, "verdict": one.verdict}
        for one in artifact.report.diagnostics
    ]


def measure(record: Record, workspace: Path) -> None:
    """Run every case that the record lacks."""
    for case in dict.fromkeys((HEALTHY, *CASES.values())):
        if not any(row["case"] == case.words for row in record.content["rows"]):
            record.add({"case": case.words, "diagnostics": diagnosed(case, workspace)})


def page(rows: list[dict[str, Any]]) -> str:
    """The text of the page."""
    found = {row["case"]: {one["name"]: one for one in row["diagnostics"]} for row in rows}
    parts = [HEAD]
    for check in checks():
        healthy = found["healthy"].get(check.name)
        case = CASES.get(check.name)
        fired = None if case is None else found[case.words].get(check.name)
        lines = [f"## {check.name}", "", check.question, ""]
        lines += [f"- **Number**: {check.number}; {check.bound} {check.threshold}."]
        lines += [f"- **Why there**: {check.reason}"] if check.reason else []
        lines += [f"- **What to do**: {check.advice}"]
        lines += [f"- **Healthy**: {_number(healthy)}" if healthy else "- **Healthy**: does not apply to the demo."]
        lines += [
            f"- **Made to fire**: {case.words}: {_number(fired)}"
            if case is not None and fired is not None and fired["verdict"] == "warning"
            else "- **Made to fire**: by hand, in `tests/diagnostics/`; by none of the compiles here."
        ]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _number(found: Mapping[str, Any]) -> str:
    return f"{found['number']:,.3g}, {found['verdict']}."


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="write the page from the record as it is")
    parser.add_argument("--workspace", type=Path, default=Path(tempfile.gettempdir()) / "diagnostics")
    given = parser.parse_args()
    record = Record(RECORD, versions={"guidedq": guidedq.__version__}, seed=0)
    if not given.page:
        measure(record, given.workspace)
    PAGE.write_text(page(record.content["rows"]))


if __name__ == "__main__":
    main()
