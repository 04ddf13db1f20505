import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import save_language_model, save_tokens
from onnx import TensorProto, helper, numpy_helper

import guidedq
from guidedq.artifacts.report import Report
from guidedq.backends.packed_torch.backend import PackedTorchBackend
from guidedq.errors import ArtifactError, BackendError, BudgetError, CalibrationError, GuidedQError, OutputError
from guidedq.ir.model import Model
from guidedq.progress import SilentProgress
from guidedq.recipe import load_recipe
from guidedq.registry import stage_text
from guidedq.request import make_job

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language_model(tmp_path_factory.mktemp("api") / "small")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return guidedq.load(folder)


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of a quick compile; tests share the workspace."""
    root = tmp_path_factory.mktemp("common")
    return {
        "data": save_tokens(root / "tokens.npz"),
        "workspace": root / "workspace",
        "settings": ["scope=linear"],
        "samples": 8,
    }


def save_network(path: Path, output: str = "y") -> Path:
    """An ONNX file with two weights: a classifier, unless the output's name says that it is something else."""
    random = np.random.default_rng(0)
    shapes = {"weight": (64, 32), "last": (32, 3)}
    weights = [numpy_helper.from_array(random.normal(size=shapes[name]).astype(np.float32), name) for name in shapes]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])
    made = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", 3])
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["h"]), helper.make_node("MatMul", ["h", "last"], [output])]
    graph = helper.make_graph(nodes, "g", [given], [made], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def test_importing_the_package_loads_no_framework() -> None:
    code = "import sys, guidedq; print(guidedq.__version__, {'torch', 'onnx', 'transformers'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{guidedq.__version__} set()\n"


def test_the_face_has_what_it_says_and_nothing_else() -> None:
    for name in guidedq.__all__:
        assert getattr(guidedq, name) is not None
    with pytest.raises(AttributeError, match="compress"):
        guidedq.compress  # noqa: B018


def test_compile_gives_a_folder_with_the_report(folder: Path, common: dict[str, Any], tmp_path: Path) -> None:
    artifact = guidedq.compile(folder, budget="5bits", out=tmp_path / "out", **common)
    assert artifact.folder == tmp_path / "out"
    assert artifact.report == Report.read(artifact.folder / "report.json")
    assert artifact.report.size.linear_bits_per_weight <= 5


def test_compile_says_more_surely_what_plan_promises(model: Model, common: dict[str, Any], tmp_path: Path) -> None:
    fixed = {**common, "settings": [*common["settings"], "coding=fixed"], "effort": "quick"}
    (point,) = guidedq.plan(model, budgets=["5bits"], **fixed)
    artifact = guidedq.compile(model, budget="5bits", out=tmp_path / "out", **fixed)
    planned, stated = point.forecast, artifact.report.forecast
    assert stated.raw_kl == planned.raw_kl
    assert planned.kl_low <= stated.kl <= planned.kl_high
    assert stated.kl_high / stated.kl_low < planned.kl_high / planned.kl_low
    assert point.bytes == artifact.report.size.file_bytes


def test_plan_nearly_promises_what_compile_does_where_sizes_are_known_on_average(
    model: Model, common: dict[str, Any], tmp_path: Path
) -> None:
    (point,) = guidedq.plan(model, budgets=["5bits"], effort="quick", **common)
    artifact = guidedq.compile(model, budget="5bits", out=tmp_path / "out", effort="quick", **common)
    assert point.forecast.raw_kl == pytest.approx(artifact.report.forecast.raw_kl, rel=0.25)
    assert point.forecast.kl == pytest.approx(artifact.report.forecast.kl, rel=0.5)
    assert point.bytes == pytest.approx(artifact.report.size.file_bytes, rel=0.01)


def test_without_a_folder_the_artifact_is_named_after_model_and_budget(
    folder: Path, common: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert guidedq.compile(folder, budget="6 bits", **common).folder == Path("small-6bits")
    assert (tmp_path / "small-6bits" / "report.json").is_file()


def test_a_recipe_may_be_a_value_a_name_or_a_file(model: Model, common: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(load_recipe("gptq").toml())
    jobs = [
        make_job(model, recipe=recipe, **common)
        for recipe in ("gptq", load_recipe("gptq"), str(tmp_path / "mine.toml"))
    ]
    assert len({job.recipe for job in jobs}) == 1
    assert jobs[0].recipe == load_recipe("gptq").with_settings(["scope=linear"])


def test_what_the_user_asks_for_reaches_the_job(model: Model, common: dict[str, Any], tmp_path: Path) -> None:
    evaluation = save_tokens(tmp_path / "evaluation.npz", seed=1)
    options = {**common, "eval_data": evaluation, "sequence_length": 12, "seed": 5, "max_memory": 10**6}
    job = make_job(model, backend="torch{fused=true}", **options)
    assert stage_text(job.sampler, "sample") == "files{samples=8 sequence-length=12}"
    assert stage_text(job.backend, "backend") == "torch{fused=true}"
    assert job.data == (common["data"],)
    assert job.evaluation_data == (evaluation,)
    assert (job.seed, job.memory_bytes, job.workspace.root) == (5, 10**6, common["workspace"])


def test_the_scope_the_patterns_and_the_backends_fusion_reach_the_graph(model: Model, common: dict[str, Any]) -> None:
    settings = ["scope=linear", "keep=*.v_proj.*,*layers.0.mlp*"]
    job = make_job(model, backend="torch{fused=true}", **{**common, "settings": settings})
    names = {site.name for site in job.model.graph.quantizable}
    assert not any("v_proj" in name or "layers.0.mlp" in name or "embed" in name or "lm_head" in name for name in names)
    assert any({"q_proj", "k_proj"} <= {name.split(".")[-2] for name in group} for group in job.model.graph.fused)
    assert model.graph.kept == frozenset(), "the loaded model stays as it is"


def test_a_language_model_writes_its_own_data_and_the_demo_has_text(model: Model, tmp_path: Path) -> None:
    assert stage_text(make_job(model, workspace=tmp_path).sampler, "sample") == "generated"
    assert stage_text(make_job("demo", workspace=tmp_path, samples=9).sampler, "sample") == "demo{samples=9}"


def test_the_backend_follows_the_models_source(model: Model, tmp_path: Path) -> None:
    network = save_network(tmp_path / "net.onnx")
    data = tmp_path / "x.npz"
    np.savez(data, x=np.zeros((9, 64), np.float32))
    assert stage_text(make_job(model, workspace=tmp_path).backend, "backend") == "torch"
    assert stage_text(make_job(network, data=data, workspace=tmp_path).backend, "backend") == "onnx"
    with pytest.raises(BackendError, match="--backend onnx"):
        guidedq.plan(network, budgets=["8bits"], data=data, backend="torch", workspace=tmp_path)


def test_a_model_that_cannot_write_its_own_data_says_what_it_takes(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"--data .*x \[any, 64\] torch.float32"):
        make_job(save_network(tmp_path / "net.onnx"), workspace=tmp_path)


def test_notices_of_loading_are_told_before_the_work(model: Model, common: dict[str, Any]) -> None:
    told: list[str] = []

    class Listener:
        def __init__(self) -> None:
            self.silent = SilentProgress()

        def start(self, stage: str, total: int) -> None:
            self.silent.start(stage, total)

        def advance(self, steps: int = 1) -> None:
            self.silent.advance(steps)

        def notice(self, text: str) -> None:
            told.append(text)

    make_job(replace(model, notices=("mind the gap",)), progress=Listener(), **common)
    assert told == ["mind the gap"]
    make_job(model, progress=Listener(), **{**common, "settings": ["outliers=0,1"]})
    assert "outliers: of fixed widths alone" in told[-1]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"budget": "many"}, BudgetError),
        ({"data": "nowhere.txt"}, CalibrationError),
        ({"eval_data": ["nowhere.txt"]}, CalibrationError),
    ],
)
def test_wrong_arguments_are_our_errors(
    folder: Path, common: dict[str, Any], changes: dict[str, Any], error: type[GuidedQError], tmp_path: Path
) -> None:
    with pytest.raises(error):
        guidedq.compile(folder, **{"budget": "5bits", **common, "out": tmp_path / "out", **changes})
    assert not (tmp_path / "out").exists()


def test_a_workspace_that_cannot_be_made_says_so(folder: Path, common: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="workspace"):
        guidedq.compile(folder, budget="5bits", **{**common, "workspace": tmp_path / "file"})


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_load_quantized_refuses_what_is_no_artifact(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="guidedq compile"):
        guidedq.load_quantized(tmp_path / name)


def test_a_backend_may_be_given_as_a_value(model: Model, common: dict[str, Any]) -> None:
    assert make_job(model, backend=PackedTorchBackend(fused=True), **common).backend == PackedTorchBackend(fused=True)


def test_an_onnx_artifact_loads_into_the_runtime(tmp_path: Path) -> None:
    network, data = save_network(tmp_path / "net.onnx"), tmp_path / "x.npz"
    values = np.random.default_rng(1).normal(size=(40, 64)).astype(np.float32)
    np.savez(data, x=values)
    options = {"data": data, "settings": ["scope=linear"], "workspace": tmp_path / "workspace"}
    artifact = guidedq.compile(network, budget="6bits", out=tmp_path / "out", **options)
    session = guidedq.load_quantized(artifact.folder)
    (output,) = session.run(None, {"x": values})
    assert output.shape == (40, 3)
    assert artifact.report.backend == "onnx"


def test_a_file_that_computes_something_else_is_not_written(
    model: Model, common: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = model.program
    monkeypatch.setattr(PackedTorchBackend, "open", lambda *_: lambda batch: -wrong.predict(batch))
    with pytest.raises(BackendError, match="differs from the weights"):
        guidedq.compile(model, budget="5bits", out=tmp_path / "out", effort="quick", **common)
    assert not (tmp_path / "out").exists()
