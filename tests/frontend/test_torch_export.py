"""Exported programs lift to the same output with a submodule for every weight; unsafe archives are not opened."""

import json
import zipfile

import pytest
import torch
from torch import nn
from torch.export import Dim

from guidedq.artifacts.quantized_weight import float_weight
from guidedq.backends.onnx.backend import OnnxBackend
from guidedq.errors import ModelError
from guidedq.frontend import load
from guidedq.frontend.pt2_archive import check_archive
from guidedq.ir.graph import Storage, UseKind
from guidedq.ir.model import Objective
from guidedq.ir.program import TorchProgram
from guidedq.quant.formats import FloatFormat


class TinyLanguageModel(nn.Module):
    """Embedding, two linear readers of one tensor, a residual, a tied head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.gate, self.up = nn.Linear(8, 12, bias=False), nn.Linear(8, 12)
        self.down = nn.Linear(12, 8)
        self.transposed = nn.Parameter(torch.randn(8, 8))
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids):
        x = self.embed(input_ids)
        read = self.norm(x)
        x = x + self.down(torch.nn.functional.silu(self.gate(read)) * self.up(read))
        return self.head(x @ self.transposed)


class TinyConvolution(nn.Module):
    """A grouped and a dense convolution, normalised, and a classifier."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False)
        self.normal = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, groups=3, padding="same")
        self.drop = nn.Dropout(0.5)
        self.classes = nn.Linear(6, 4)

    def forward(self, pixels):
        x = torch.relu(self.normal(self.first(pixels)))
        return self.classes(self.drop(self.second(x).mean((2, 3))))


class TinyGenerator(nn.Module):
    """A volume made from an image: a transposed convolution in groups, and one with three axes."""

    def __init__(self):
        super().__init__()
        self.first = nn.ConvTranspose2d(3, 6, 3, stride=2, padding=1, output_padding=1, groups=3)
        self.second = nn.Conv3d(2, 4, 3, padding=1, bias=False)

    def forward(self, pixels):
        return self.second(torch.tanh(self.first(pixels)).unflatten(1, (2, 3)))


def exported(module, path, decomposed=False, name="input_ids"):
    if name == "input_ids":
        sample = torch.randint(11, (2, 5))
        shapes = ({0: Dim("sample", min=1, max=64), 1: Dim("token", min=2, max=32)},)
    else:
        sample, shapes = torch.randn(2, 3, 8, 8), ({0: Dim("sample", min=1, max=64)},)
    program = torch.export.export(module, (sample,), dynamic_shapes=shapes)
    torch.export.save(program.run_decompositions() if decomposed else program, path)
    return load(path)


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    torch.manual_seed(0)
    module = TinyLanguageModel().eval()
    folder = tmp_path_factory.mktemp("exported")
    return module, {
        decomposed: exported(module, folder / f"tiny_{decomposed}.pt2", decomposed) for decomposed in (False, True)
    }


@pytest.mark.parametrize("decomposed", [False, True])
def test_language_model_gives_the_same_output_under_the_same_names(language, decomposed):
    module, models = language
    model = models[decomposed]
    tokens = torch.randint(11, (3, 7))
    torch.testing.assert_close(model.program.predict({"input_ids": tokens}), module(tokens), rtol=1e-5, atol=1e-6)
    assert [site.name for site in model.graph.sites] == [
        "embed.weight", "gate.weight", "up.weight", "down.weight", "transposed",
    ]  # fmt: skip
    assert model.objective is Objective.LANGUAGE_MODEL
    assert (model.vocabulary_size, model.context_length) == (11, 32)
    assert model.parameters == sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("decomposed", [False, True])
def test_weights_can_be_swapped_and_tied_ones_change_everywhere(language, decomposed):
    module, models = language
    tokens = torch.randint(11, (2, 6))
    for site in models[decomposed].graph.sites:
        fresh = torch.randn(site.shape)
        changed = models[decomposed].program.predict({"input_ids": tokens}, weights={site.name: fresh})
        expected = torch.func.functional_call(module, {site.name: fresh}, (tokens,))
        torch.testing.assert_close(changed, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decomposed", [False, True])
def test_operators_read_activations_whose_first_axis_is_the_sample(language, decomposed):
    model = language[1][decomposed]
    operators = {use.operator: None for site in model.graph.sites for use in site.uses}
    seen = model.program.observe({"input_ids": torch.randint(11, (3, 7))}, operators)
    assert {tuple(values.shape[:2]) for values in seen.values()} == {(3, 7)}


def test_facts_of_sharing_and_storage_are_found(language):
    graph = language[1][False].graph
    assert [use.kind for use in graph.sites[0].uses] == [UseKind.EMBEDDING, UseKind.LINEAR]
    assert graph.shared_inputs == (("gate.weight", "up.weight"),)
    assert graph.site("transposed").storage is Storage.IN_OUT
    assert graph.head == "embed.weight"


@pytest.mark.parametrize("decomposed", [False, True])
def test_convolutions_keep_their_geometry_and_their_groups(tmp_path, decomposed):
    torch.manual_seed(0)
    module = TinyConvolution().eval()
    model = exported(module, tmp_path / "tiny.pt2", decomposed, name="pixels")
    pixels = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(model.program.predict({"pixels": pixels}), module(pixels), rtol=1e-5, atol=1e-6)
    assert [(site.name, site.input_groups) for site in model.graph.sites] == [
        ("first.weight", 1), ("second.weight", 3), ("classes.weight", 1),
    ]  # fmt: skip
    assert model.objective is Objective.CLASSIFIER
    assert model.inputs[0].shape == (None, 3, 8, 8)


@pytest.mark.parametrize("decomposed", [False, True])
def test_transposed_convolutions_and_those_with_three_axes_are_sites(tmp_path, decomposed):
    torch.manual_seed(0)
    module = TinyGenerator().eval()
    model = exported(module, tmp_path / "tiny.pt2", decomposed, name="pixels")
    pixels = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(model.program.predict({"pixels": pixels}), module(pixels), rtol=1e-5, atol=1e-6)
    assert [(site.name, site.rows, site.columns) for site in model.graph.sites] == [
        ("first.weight", 6, 9), ("second.weight", 4, 54),
    ]  # fmt: skip


def test_recurrent_weights_are_left_alone_and_reported(tmp_path):
    class TinyRecurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.classes = nn.GRU(24, 8, batch_first=True), nn.Linear(8, 4)

        def forward(self, pixels):
            return self.classes(self.read(pixels.flatten(1, 2).mT)[0][:, -1])

    model = exported(TinyRecurrent().eval(), tmp_path / "tiny.pt2", name="pixels")
    assert [site.name for site in model.graph.sites] == ["classes.weight"]
    (notice,) = model.notices
    assert "tensors of 576 values (1) that aten.gru.input reads" in notice
    assert "ONNX" in notice


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_normed_weights_are_sites_and_their_parts_are_no_parameters(tmp_path, norm):
    torch.manual_seed(0)
    module = nn.Sequential(norm(nn.Conv2d(3, 6, 3)), nn.Tanh(), norm(nn.ConvTranspose2d(6, 4, 2), dim=1)).eval()
    pixels = torch.randn(3, 3, 8, 8)
    expected = module(pixels)
    model = exported(module, tmp_path / "tiny.pt2", name="pixels")
    torch.testing.assert_close(model.program.predict({model.inputs[0].name: pixels}), expected, rtol=1e-5, atol=1e-6)
    assert [site.name for site in model.graph.sites] == ["0.weight", "2.weight"]
    assert model.parameters == 3 * 6 * 9 + 6 + 6 * 4 * 4 + 4
    assert not model.notices


def test_operators_that_overwrite_what_a_layer_gave_do_so_no_more(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.SiLU(inplace=True)).eval()
    model = exported(module, tmp_path / "tiny.pt2", name="pixels")
    assert isinstance(model.program, TorchProgram)
    pixels, name = torch.randn(3, 3, 8, 8), model.inputs[0].name
    torch.testing.assert_close(model.program.predict({name: pixels}), module(pixels), rtol=1e-5, atol=1e-6)
    first = model.program.module.get_submodule(model.graph.sites[0].uses[0].operator)
    written: list[torch.Tensor] = []
    first.register_forward_hook(lambda *call: written.append(call[-1]))
    model.program.predict({name: pixels})
    torch.testing.assert_close(written[0], module[0](pixels))


class TwoHeads(nn.Module):
    """A trunk, a small image, places without samples, a hundredfold vector."""

    def __init__(self, *, classes):
        super().__init__()
        self.trunk = nn.Conv2d(3, 8, 3)
        self.first, self.second = nn.Conv2d(8, 6, 3), nn.Linear(8, 5)
        self.classes = classes

    def forward(self, pixels):
        x = torch.tanh(self.trunk(pixels))
        image, vector = self.first(x), self.second(x.mean((2, 3)))
        if self.classes:
            return vector, x
        return image, vector.argmax(1), 100 * vector


def test_several_outputs_count_together_and_all_are_written(tmp_path):
    torch.manual_seed(0)
    module = TwoHeads(classes=False).eval()
    model = exported(module, tmp_path / "tiny.pt2", name="pixels")
    assert model.objective is Objective.JOINT_VALUES
    assert model.output.names == ("output_0", "output_2")
    assert len(model.graph.sites) == 3
    assert any("output_0, output_2, each" in notice and "not about output_1" in notice for notice in model.notices)
    pixels = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        image, best, vector = module(pixels)
    output = model.program.predict({model.inputs[0].name: pixels})
    torch.testing.assert_close(output[:, 0], image.flatten(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output[:, 1, :5], vector, rtol=1e-4, atol=1e-4)
    backend = OnnxBackend(accuracy_level=0)
    (tmp_path / "out").mkdir()
    backend.emit(
        model,
        [float_weight(site.name, model.matrix(site), FloatFormat()) for site in model.graph.sites],
        tmp_path / "out",
    )
    found = backend.load(tmp_path / "out").run(
        ["output_0", "output_1", "output_2"], {model.inputs[0].name: pixels.numpy()}
    )
    for expected, value in zip((image, best, vector), found, strict=True):
        torch.testing.assert_close(torch.from_numpy(value), expected, rtol=1e-2, atol=1e-2)
    opened = backend.open(model, tmp_path / "out")({model.inputs[0].name: pixels})
    torch.testing.assert_close(opened, output, rtol=1e-2, atol=1e-2)


class Repeating(nn.Module):
    """Gives one result twice, and its input."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)

    def forward(self, pixels):
        x = torch.tanh(self.first(pixels))
        return x, self.second(x), x, pixels


def test_what_is_returned_twice_or_handed_through_counts_once_or_not(tmp_path):
    torch.manual_seed(0)
    model = exported(Repeating().eval(), tmp_path / "tiny.pt2", name="pixels")
    assert model.output.names == ("output_0", "output_1")
    (tmp_path / "out").mkdir()
    backend = OnnxBackend(accuracy_level=0)
    weights = [float_weight(site.name, model.matrix(site), FloatFormat()) for site in model.graph.sites]
    backend.emit(model, weights, tmp_path / "out")
    assert [entry.name for entry in backend.load(tmp_path / "out").get_outputs()] == ["output_0", "output_1"]
    batch = {model.inputs[0].name: torch.randn(3, 3, 8, 8)}
    opened = backend.open(model, tmp_path / "out")(batch)
    torch.testing.assert_close(opened, model.program.predict(batch), rtol=1e-2, atol=1e-2)


def test_a_classifier_beside_what_it_reads_stands_alone(tmp_path):
    torch.manual_seed(0)
    model = exported(TwoHeads(classes=True).eval(), tmp_path / "tiny.pt2", name="pixels")
    assert model.objective is Objective.CLASSIFIER
    assert any("and that alone is written; not tanh." in notice for notice in model.notices)


def test_program_exported_in_half_precision_runs_in_float32(tmp_path):
    torch.manual_seed(0)
    module = TinyLanguageModel().eval().bfloat16()
    model = exported(module, tmp_path / "tiny.pt2")
    tokens = torch.randint(11, (2, 5))
    output = model.program.predict({"input_ids": tokens})
    torch.testing.assert_close(output, module.float()(tokens), rtol=1e-5, atol=1e-5)


def test_program_exported_in_training_mode_is_refused(tmp_path):
    with pytest.raises(ModelError, match="training mode"):
        exported(TinyConvolution().train(), tmp_path / "tiny.pt2", name="pixels")


def rewritten(source, target, change):
    """A copy of an archive with the content of some records changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for entry in old.infolist():
            content = change(entry.filename, old.read(entry))
            if content is not None:
                new.writestr(entry.filename, content)
    return target


def mark_as_pickled(name, content):
    if not name.endswith("model_weights_config.json"):
        return content
    table = json.loads(content)
    next(iter(table["config"].values()))["use_pickle"] = True
    return json.dumps(table).encode()


def put_code_for_a_size(name, content):
    if not name.endswith("models/model.json"):
        return content
    code = "eval(chr(49))"
    changed = content.replace(b"Symbol('s", code.encode() + b" + Symbol('s", 1)
    assert changed != content
    return changed


def put_foreign_examples(name, content):
    class Anything:
        def __reduce__(self):
            return (print, ("unpickled",))

    if "sample_inputs" not in name:
        return content
    import io

    buffer = io.BytesIO()
    torch.save(Anything(), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "said"),
    [(mark_as_pickled, "pickle"), (put_code_for_a_size, "not opened"), (put_foreign_examples, "unpickling")],
)
def test_archive_that_could_run_code_is_not_opened(language, tmp_path, change, said, capsys):
    source = language[1][False].path
    check_archive(rewritten(source, tmp_path / "same.pt2", lambda _name, content: content))
    with pytest.raises(ModelError, match=said):
        load(rewritten(source, tmp_path / "changed.pt2", change))
    assert "unpickled" not in capsys.readouterr().out


def test_truncated_archive_is_refused(language, tmp_path):
    path = tmp_path / "cut.pt2"
    path.write_bytes(language[1][False].path.read_bytes()[:2000])
    with pytest.raises(ModelError, match="truncated"):
        load(path)
