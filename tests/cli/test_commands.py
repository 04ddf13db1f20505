"""The commands on a small model, from end to end in this process."""

import json
import math
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from command_line import options, run, run_json, save_language_model, save_tokens

import guidedq
from guidedq.artifacts.report import Report, read_report
from guidedq.evaluation import measure

BUDGET = "5bits"


@dataclass(frozen=True)
class Compiled:
    """One compile that all tests of this file look at."""

    root: Path
    model: Path
    folder: Path
    content: dict[str, Any]

    @property
    def options(self) -> list[object]:
        return options(self.root)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    root = tmp_path_factory.mktemp("compiled")
    model = save_language_model(root / "model")
    content = run_json("compile", model, "--budget", BUDGET, "--out", root / "out", *options(root))
    return Compiled(root=root, model=model, folder=root / "out", content=content)


def test_the_json_is_the_report_that_lies_in_the_folder(compiled: Compiled) -> None:
    written = json.loads((compiled.folder / "report.json").read_text())
    assert compiled.content == {**written, "folder": str(compiled.folder)}
    stable = {
        "model": {"parameters", "digest"},
        "budget": {"asked", "bytes"},
        "size": {"file_bytes", "bits_per_weight", "linear_bits_per_weight"},
        "forecast": {"kl", "kl_low", "kl_high", "loss_increase"},
        "measured": {"kl", "loss_before", "loss_after", "tokens"},
    }
    for part, names in stable.items():
        assert names <= set(compiled.content[part])
    assert {"sample", "guidance", "curves", "allocate", "emit", "evaluate"} <= set(compiled.content["seconds"])
    assert all(math.isfinite(seconds) for seconds in compiled.content["seconds"].values())


def test_the_sizes_in_the_report_are_those_on_disk_and_within_the_budget(compiled: Compiled) -> None:
    on_disk = (compiled.folder / "model.safetensors").stat().st_size
    assert compiled.content["size"]["file_bytes"] == on_disk
    assert compiled.content["size"]["linear_bits_per_weight"] <= 5
    assert compiled.content["size"]["linear_bits_per_weight"] > 4.9
    linear = sum(site["bytes"] for site in compiled.content["sites"])
    assert linear <= compiled.content["budget"]["bytes"]


def test_nothing_but_the_artifact_is_left_beside_it(compiled: Compiled) -> None:
    assert {path.name for path in compiled.root.iterdir()} == {"model", "out", "tokens.npz", "workspace"}
    names = {path.name for path in compiled.folder.iterdir()}
    assert {"config.json", "manifest.json", "model.safetensors", "report.html", "report.json"} <= names


def test_the_measurement_is_what_the_loaded_artifact_does(compiled: Compiled) -> None:
    report = Report.read(compiled.folder / "report.json")
    loaded = guidedq.load_quantized(compiled.folder)
    original = guidedq.load(compiled.model)
    tokens = torch.randint(3, 40, (3, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = loaded(input_ids=tokens).logits
    theirs = original.program.predict({"input_ids": tokens})
    assert ours.shape == theirs.shape
    assert 0 < float((ours - theirs).abs().mean()) < float(theirs.abs().mean())
    assert report.measured.kl > 0


def test_a_second_budget_takes_everything_measured_from_the_workspace(compiled: Compiled, tmp_path: Path) -> None:
    result = run("compile", compiled.model, "--budget", "4.6", "--out", tmp_path / "out", *compiled.options)
    assert result.exit_code == 0, result.stderr
    began = [line.partition(":")[0] for line in result.stderr.splitlines()]
    assert not {"sample", "guidance", "curves"} & set(began)
    assert began.count("probe") == 1  # of the model that is written
    assert "round and pack" in began


def test_the_same_command_gives_the_same_bytes(compiled: Compiled, tmp_path: Path) -> None:
    words = ("compile", compiled.model, "--budget", BUDGET, "--out", tmp_path / "again", *compiled.options)
    assert run(*words, "--workspace", tmp_path / "new").exit_code == 0
    names = ("model.safetensors", "manifest.json", "config.json")
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (compiled.folder / name).read_bytes()


def test_the_summary_says_what_was_promised_and_measured(compiled: Compiled, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("compile", compiled.model, "--budget", BUDGET, "--out", out, *compiled.options)
    lines = {line.partition("  ")[0]: line for line in result.stdout.splitlines()}
    assert "bits per weight" in lines["size"]
    assert "forecast" in lines["KL"] and "measured" in lines["KL"]
    assert "perplexity" in lines and "memory" in lines and "guidance" in lines["seconds"]
    assert f'guidedq.load_quantized("{out}")' in lines["load"]
    assert str(out) in lines["files"]


def test_the_forecast_is_told_before_anything_is_written(compiled: Compiled, tmp_path: Path) -> None:
    result = run("compile", compiled.model, "--budget", BUDGET, "--out", tmp_path / "out", *compiled.options)
    told = [line.partition(" ")[0] for line in result.stderr.splitlines()]
    assert told.index("forecast") < told.index("round")


def test_no_control_sequence_goes_to_a_pipe(compiled: Compiled) -> None:
    for words in (["inspect", compiled.model], ["inspect", compiled.folder], ["stages"]):
        result = run(*words)
        assert "\x1b" not in result.stdout + result.stderr
        assert "\r" not in result.stdout + result.stderr


def test_a_missed_gate_exits_with_3_and_leaves_nothing(compiled: Compiled, tmp_path: Path) -> None:
    words = ("compile", compiled.model, "--budget", BUDGET, "--out", tmp_path / "out", *compiled.options)
    result = run(*words, "--max-loss-increase", "-1000", "--json")
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "exceeds the gate of -1000" in result.stderr
    assert list(tmp_path.iterdir()) == []
    assert run(*words, "--max-loss-increase", "1000").exit_code == 0


def test_a_strict_compile_exits_with_3_and_leaves_nothing_if_a_diagnostic_warns(
    compiled: Compiled, tmp_path: Path
) -> None:
    words = ("compile", compiled.model, "--budget", BUDGET, "--out", tmp_path / "out", *compiled.options)
    result = run(*words, "--strict", "--training-tokens", "1e9")
    assert result.exit_code == 3
    assert result.stdout == ""
    said = {line.partition(": ")[0]: line for line in result.stderr.splitlines()}
    assert "at least 16" in said["calibration-samples"] and "at most 1,000" in said["over-training"]
    assert list(tmp_path.iterdir()) == []


def test_every_warning_is_told_with_what_to_do(compiled: Compiled, tmp_path: Path) -> None:
    diagnostics = {check["name"]: check for check in compiled.content["diagnostics"]}
    assert {"guidance-agreement", "shrinkage", "curve-order", "overlap", "text-fit"} <= set(diagnostics)
    assert diagnostics["calibration-samples"]["verdict"] == "warning"
    words = ("compile", compiled.model, "--budget", BUDGET, "--out", tmp_path / "out", *compiled.options)
    lines = [line for line in run(*words).stdout.splitlines() if line.startswith("warning")]
    warnings = [check for check in diagnostics.values() if check["verdict"] == "warning"]
    assert len(lines) == len(warnings)
    assert all(check["name"] in line and check["advice"] in line for check, line in zip(warnings, lines, strict=True))


def test_overwriting_needs_to_be_told(compiled: Compiled, tmp_path: Path) -> None:
    shutil.copytree(compiled.folder, tmp_path / "out")
    words = ("compile", compiled.model, "--budget", "4.6", "--out", tmp_path / "out", *compiled.options)
    assert run(*words).exit_code == 1
    assert run(*words, "--overwrite").exit_code == 0
    assert Report.read(tmp_path / "out" / "report.json").budget.asked == "4.6"


def test_ctrl_c_exits_with_130_and_the_same_command_goes_on(
    compiled: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    words = ("compile", compiled.model, "--budget", BUDGET, "--out", tmp_path / "out", *compiled.options)
    with monkeypatch.context() as patched:
        patched.setattr("guidedq.compiler.measure", interrupted)
        result = run(*words)
    assert result.exit_code == 130
    assert "goes on where it stopped" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
    assert run(*words).exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_real_process_cleanly(compiled: Compiled, tmp_path: Path, number: signal.Signals) -> None:
    words = ["compile", compiled.model, "--budget", BUDGET, "--out", tmp_path / "out", *compiled.options]
    command = [sys.executable, "-m", "guidedq", *map(str, words), "--workspace", str(tmp_path / "workspace")]
    before = signal.signal(number, signal.default_int_handler)  # what a shell's background job ignores is inherited
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(number, before)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("sample")
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert stdout == ""
    assert "Traceback" not in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["workspace"]


def test_our_own_bugs_keep_their_traceback_and_ask_for_a_report(
    compiled: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("guidedq.compiler.measure", broken)
    result = run("compile", compiled.model, "--budget", BUDGET, "--out", tmp_path / "out", *compiled.options)
    assert isinstance(result.exception, ZeroDivisionError)
    assert any("please report it" in note for note in result.exception.__notes__)
    assert list(tmp_path.iterdir()) == []


def test_plan_forecasts_what_compile_forecasts_and_writes_only_the_plot(compiled: Compiled, tmp_path: Path) -> None:
    plot = tmp_path / "plan.png"
    planned = run_json("plan", compiled.model, "--budgets", f"4.6,{BUDGET},6", "--plot", plot, *compiled.options)
    points = planned["points"]
    assert [point["asked"] for point in points] == ["4.6", BUDGET, "6"]
    promised = compiled.content["forecast"]  # of an allocation corrected for the size of the file
    for name, share in (("raw_kl", 0.25), ("kl", 0.5)):  # and measured on the probe samples
        assert points[1]["forecast"][name] == pytest.approx(promised[name], rel=share)
    assert points[0]["bytes"] < points[1]["bytes"] < points[2]["bytes"]
    assert points[0]["forecast"]["raw_kl"] >= points[1]["forecast"]["raw_kl"] >= points[2]["forecast"]["raw_kl"]
    assert [path.name for path in tmp_path.iterdir()] == ["plan.png"]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_plan_prints_a_row_for_every_budget(compiled: Compiled) -> None:
    lines = run("plan", compiled.model, "--budgets", "4.6,6", *compiled.options).stdout.splitlines()
    rows = [line.split()[0] for line in lines if line.strip()]
    assert [row for row in rows if row in ("4.6", "6")] == ["4.6", "6"] * 2, "the losses, and where the bits go"


def test_eval_of_an_artifact_agrees_with_a_measurement_by_hand(compiled: Compiled, tmp_path: Path) -> None:
    data = save_tokens(tmp_path / "other.npz", seed=5)
    words = ("eval", compiled.folder, "--model", compiled.model, "--data", data)
    found = run_json(*words)
    import numpy as np

    from guidedq.artifacts.samples import SampleSet
    from guidedq.backends.packed_torch.backend import PackedTorchBackend
    from guidedq.progress import SilentProgress

    model = guidedq.load(compiled.model)
    samples = SampleSet(inputs={"input_ids": torch.from_numpy(np.load(data)["input_ids"])})
    predict = PackedTorchBackend().open(model, compiled.folder)
    by_hand = measure(
        samples,
        model.objective,
        predict_original=model.program.predict,
        predict_quantized=predict,
        progress=SilentProgress(),
    )
    assert found["tokens"] == by_hand.units
    assert found["kl"] == pytest.approx(by_hand.kl)
    assert found["loss_before"] == pytest.approx(by_hand.loss_before)
    assert found["loss_after"] == pytest.approx(by_hand.loss_after)
    assert found["agreement"] == pytest.approx(by_hand.agreement)
    assert found["perplexity_after"] == pytest.approx(math.exp(by_hand.loss_after))
    assert "perplexity" in run(*words).stdout


def test_eval_needs_the_original_and_refuses_another_model(compiled: Compiled, tmp_path: Path) -> None:
    data = save_tokens(tmp_path / "other.npz", seed=5)
    assert run("eval", compiled.folder, "--data", data).exit_code == 0  # it is where the report says
    moved = Path(shutil.copytree(compiled.folder, tmp_path / "moved"))
    report = read_report(moved)
    (moved / "report.json").write_text(replace(report, model=replace(report.model, path="nowhere")).to_json())
    assert "--model" in run("eval", moved, "--data", data).stderr
    result = run("eval", compiled.folder, "--data", data, "--model", "demo")
    assert result.exit_code == 1
    assert "another model" in result.stderr


def test_inspect_of_a_model_lists_its_sites_and_draws_its_graph(compiled: Compiled, tmp_path: Path) -> None:
    drawing = tmp_path / "model.dot"
    facts = run_json("inspect", compiled.model, "--dot", drawing)
    model = guidedq.load(compiled.model)
    assert [site["name"] for site in facts["sites"]] == [site.name for site in model.graph.sites]
    assert sum(site["share"] for site in facts["sites"]) <= 1
    assert facts["model"]["parameters"] == model.parameters
    text = drawing.read_text()
    assert text.count(" -> ") == model.graph.operators.number_of_edges()
    assert text.count("[label=") + text.count("[shape=box") == model.graph.operators.number_of_nodes()
    table = run("inspect", compiled.model).stdout
    assert all(site.name in table for site in model.graph.sites)


def test_inspect_of_an_artifact_lists_formats_and_bytes(compiled: Compiled) -> None:
    facts = run_json("inspect", compiled.folder)
    assert [site["bytes"] for site in facts["sites"]] == [site["bytes"] for site in compiled.content["sites"]]
    table = run("inspect", compiled.folder).stdout
    assert all(site["name"] in table for site in facts["sites"])
    assert "-bit coded" in table
    assert run("inspect", compiled.folder, "--dot", "x.dot").exit_code == 1


def test_dot_escapes_names() -> None:
    from guidedq.inspection import dot
    from guidedq.ir.graph import Graph, operator_graph

    nodes = [('a "b"', {"operator": "Op\\1"}), ("c\nd", {"operator": "Op"})]
    text = dot(Graph(operators=operator_graph(nodes, [(nodes[0][0], nodes[1][0])]), sites=()), "x")
    assert '"a \\"b\\"" -> "c d";' in text
    assert 'label="Op\\\\1"' in text
    assert nx.is_directed_acyclic_graph(operator_graph(nodes, []))


@pytest.mark.slow
def test_compare_measures_every_variant_within_the_budget(compiled: Compiled, tmp_path: Path) -> None:
    plot, out = tmp_path / "compare.svg", tmp_path / "out"
    words = ("compare", compiled.model, "--budget", BUDGET, *compiled.options)
    found = run_json(*words, "--plot", plot, "--out", out)
    variants = {variant["name"]: variant for variant in found["variants"]}
    assert list(variants) == ["nearest", "gptq", "guided-uniform", "guided", "guided-equal"]
    assert all(variant["linear_bits_per_weight"] <= 5 for variant in variants.values())
    assert len({variant["measured"]["tokens"] for variant in variants.values()}) == 1
    assert len({variant["measured"]["loss_before"] for variant in variants.values()}) == 1
    rival = min(("nearest", "gptq"), key=lambda name: variants[name]["measured"]["kl"])
    assert variants["guided-equal"]["file_bytes"] <= variants[rival]["file_bytes"]
    assert variants["guided"]["measured"] == compiled.content["measured"]
    assert sorted(path.name for path in out.iterdir()) == sorted(variants)
    assert plot.read_text().startswith("<?xml")
    table = run(*words).stdout
    assert all(name in table for name in variants)


@pytest.mark.slow
def test_compare_goes_on_where_no_single_format_is_small_enough(compiled: Compiled) -> None:
    words = ("compare", compiled.model, "--budget", "2.4bits", *compiled.options)
    assert [variant["name"] for variant in run_json(*words)["variants"]] == ["guided"]
    assert "guided is alone" in run(*words).stdout
