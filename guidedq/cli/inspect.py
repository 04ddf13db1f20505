"""`guidedq inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from guidedq.cli.console import print_facts, print_json, print_table, working
from guidedq.cli.options import JsonOption
from guidedq.errors import OutputError
from guidedq.report.wording import bytes_text, loss_text, mixture_text, share_text

SubjectArgument = Annotated[
    str, typer.Argument(metavar="MODEL|ARTIFACT", help="A model, or a folder that guidedq compile wrote.")
]
DotOption = Annotated[
    Path | None, typer.Option("--dot", metavar="FILE", help="Write the model's graph as a Graphviz drawing.")
]


def inspect_command(subject: SubjectArgument, json: JsonOption = False, dot: DotOption = None) -> None:
    r"""Show what a model or an artifact consists of, site by site.

    \b
    guidedq inspect demo
    guidedq inspect model.onnx --dot model.dot
    guidedq inspect demo-3.5bits
    """
    with working():
        from guidedq.inspection import artifact_facts

        report = Path(subject) / "report.json"
        compiled = report.is_file()
        if compiled:
            from guidedq.artifacts.report import Report

            if dot is not None:
                raise OutputError(f"--dot draws models; {subject} is an artifact. Name its original.")
            facts = artifact_facts(Report.read(report))
        else:
            facts = _model(subject, dot)
    if json:
        print_json(facts)
    elif compiled:
        _print_artifact(facts)
    else:
        _print_model(facts)


def _model(subject: str, drawing: Path | None) -> dict[str, Any]:
    from guidedq.frontend import load
    from guidedq.inspection import dot, model_facts

    if drawing is not None and not drawing.parent.is_dir():
        raise OutputError(f"{drawing} cannot be written: its folder does not exist.")
    model = load(subject)
    if drawing is not None:
        try:
            drawing.write_text(dot(model.graph, model.name), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {drawing}: {error.strerror}.") from error
    return model_facts(model)


def _print_model(facts: dict[str, Any]) -> None:
    rows = [
        (
            site["name"] + (" (kept)" if site["kept"] else ""),
            site["operator"] + (f", {len(site['uses'])} uses" if len(site["uses"]) > 1 else ""),
            _shape(site["shape"]),
            f"{site['parameters']:,}",
            share_text(site["share"]),
        )
        for site in facts["sites"]
    ]
    print_table(("site", "operator", "shape", "parameters", "share"), rows, text_columns=2)
    model = facts["model"]
    held = sum(site["parameters"] for site in facts["sites"])
    inputs = ", ".join(f"{one['name']} {_shape(one['shape'])} {one['dtype']}" for one in model["inputs"])
    print_facts(
        [
            ("model", f"{model['name']} ({model['source']}), {model['objective'].replace('_', ' ')}"),
            ("parameters", f"{model['parameters']:,}, {share_text(held / model['parameters'])} of them in sites"),
            ("inputs", inputs),
            ("graph", f"{model['operators']} operators, {len(facts['shared_inputs'])} groups of sites share an input"),
            ("digest", model["digest"]),
            *(("notice", notice) for notice in model["notices"]),
        ]
    )


def _print_artifact(facts: dict[str, Any]) -> None:
    rows = [
        (
            site["name"],
            mixture_text(site["rows"]),
            _shape(site["shape"]),
            f"{site['bits']:.3f}",
            f"{site['bytes']:,}",
            loss_text(site["distortion"]),
        )
        for site in facts["sites"]
    ]
    print_table(("site", "format: rows", "shape", "bits", "bytes", "distortion"), rows, text_columns=2)
    size = facts["size"]
    bits = f"{size['bits_per_weight']:.3f} bits per weight, {size['linear_bits_per_weight']:.3f} in the linear layers"
    print_facts([("model", facts["model"]["name"]), ("size", f"{bytes_text(size['file_bytes'])} = {bits}")])


def _shape(shape: list[int | None]) -> str:
    return " x ".join("any" if size is None else str(size) for size in shape)
