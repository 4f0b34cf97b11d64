"""Every kind of source, from files that this test writes; and what is refused, in one sentence that says what to do."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile

import numpy as np
import onnx_ir as ir
import pytest
from autodiff.pytorch_models import randomised, vision
from exporters.pytorch.zoo import needs

from onnx_gradcam import export
from onnx_gradcam.errors import ExplainError, ExportError, InputError, TargetError
from onnx_gradcam.exporters.finishing import finish_export
from onnx_gradcam.exporters.pytorch import export_pytorch
from onnx_gradcam.images.preprocessing import parse_preprocessing
from onnx_gradcam.runtime.session import Session

TOLERANCE = 1e-5

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore"),  # PyTorch's own
]


def small(torch):
    """A classifier with a ReLU in place behind its last convolution, a dropout and a shared ReLU."""
    nn = torch.nn

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
            self.second = nn.Conv2d(8, 12, 3, stride=2, padding=1)
            self.relu = nn.ReLU(inplace=True)
            self.drop = nn.Dropout()
            self.head = nn.Linear(12, 5)

        def forward(self, x):
            x = self.relu(self.second(self.relu(self.first(x))))
            return self.head(self.drop(x.mean((2, 3), keepdim=True).view(x.size(0), 12)))

    torch.manual_seed(0)
    return randomised(Small(), 32)


def logits(torch, network, x):
    with torch.no_grad():
        y = network(torch.from_numpy(x))
    return getattr(y, "logits", y).numpy()


def x_of(size, batch=2):
    return np.random.default_rng(9).standard_normal((batch, 3, size, size), np.float32)


def check(torch, product, network, size, *, batch=2):
    """The exported graph gives the network's own scores."""
    exported = finish_export(product)
    x = x_of(size, batch)
    found = Session(exported.to_proto().SerializeToString()).run({"input": x})[exported.score]
    wanted = logits(torch, network, x)
    assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()
    return exported


# ----- the network itself ----------------------------------------------------


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize(("layer", "call"), [("second", -1), ("first.1", 0), ("relu", 0), ("relu", -1), ("head", -1)])
def test_a_module_and_its_call(torch, layer, call, exporter):
    network = small(torch)
    product = export_pytorch(network, layer=layer, call=call, exporter=exporter, size=16)
    tensor, seen = product.layers[layer].tensor, []

    def keep(_module, _inputs, output):
        seen.append(output.clone().numpy())

    hook = network.get_submodule(layer).register_forward_hook(keep)
    x = x_of(16)
    logits(torch, network, x)
    hook.remove()
    proto = product.model.to_proto()
    if tensor not in {o.name for o in proto.graph.output}:
        proto.graph.output.add(name=tensor).type.tensor_type.elem_type = 1
    found = Session(proto.SerializeToString()).run({"input": x})
    assert next(iter(found)) == "output"
    assert np.abs(found[tensor] - seen[call]).max() <= TOLERANCE * np.abs(seen[call]).max()


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_height_and_width_stay_free_where_the_network_allows_it(torch, exporter):
    network = small(torch)
    product = export_pytorch(network, exporter=exporter)
    assert product.model.shape("input") == ("batch", 3, "height", "width")
    check(torch, product, network, 40, batch=5)
    fixed = export_pytorch(network, size=(24, 32), exporter="torchscript")
    assert fixed.model.shape("input") == ("batch", 3, 24, 32)


def test_height_and_width_are_fixed_where_the_network_computes_with_them(torch):
    nn = torch.nn

    class Fixed(nn.Module):
        image_size = 16

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3, stride=4), nn.Linear(4 * 4 * 4, 3)

        def forward(self, x):
            return self.head(self.conv(x).relu().flatten(1))

    product = export_pytorch(Fixed(), exporter="torchscript")
    assert product.model.shape("input") == ("batch", 3, 16, 16)


def test_outputs_of_a_dictionary_keep_their_names(torch):
    network = small(torch)

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, x):
            y = self.inner(x)
            return {"scores": y, "probabilities": y.softmax(1)}

    for exporter in ("dynamo", "torchscript"):
        product = export_pytorch(Named(), layer="inner.second", size=16, exporter=exporter)
        assert [o.name for o in product.model.core.graph.outputs] == ["scores", "probabilities"]


def test_a_detector_with_nested_outputs_is_exported_by_its_task(torch):
    class Detector(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.table = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 5, 1)

        def forward(self, x):
            maps = self.inner(x).relu()
            table = self.table(maps).flatten(2).transpose(1, 2)
            return table.sigmoid(), [maps.mean((2, 3)), {"raw": table}]

    for exporter in ("dynamo", "torchscript"):
        network = Detector().eval()
        made = export(network, task="detection", output="output_0", size=(16, 16), exporter=exporter)
        assert [o.name for o in made.model.core.graph.outputs][:3] == ["output_0", "output_1_0", "output_1_1_raw"]
        assert (made.task, made.outputs, made.shape[1:]) == ("detection", ["output_0"], (8, 14, 14))


def test_auto_takes_the_other_exporter_and_says_so(torch, monkeypatch):
    from onnx_gradcam.exporters.pytorch import conversion  # noqa: PLC0415 - needs PyTorch

    def fail(*_arguments, **_choices):
        raise RuntimeError("no decomposition")

    monkeypatch.setitem(conversion._EXPORTERS, "dynamo", fail)
    product = export_pytorch(small(torch), size=16)
    assert product.parity.startswith("torchscript exporter; within ")
    assert "no decomposition" in product.warnings[0]
    with pytest.raises(ExportError, match="dynamo exporter cannot export the network: no decomposition"):
        export_pytorch(small(torch), size=16, exporter="dynamo")


@pytest.mark.parametrize("wrong", ["output", "target"])
def test_values_that_differ_are_refused(torch, monkeypatch, wrong):
    from onnx_gradcam.exporters.pytorch import verified  # noqa: PLC0415 - needs PyTorch

    true = verified.convert

    def changed(*arguments, **choices):
        model = true(*arguments, **choices)
        weights = model.core.graph.initializers
        name = next(n for n, w in weights.items() if ("head" if wrong == "output" else "second") in n)
        weights[name].const_value = ir.tensor(weights[name].const_value.numpy() * 1.01, name=name)
        return model

    monkeypatch.setattr(verified, "convert", changed)
    with pytest.raises(ExportError, match=r"differs from PyTorch's by \d\.\de-0\d of the largest"):
        export_pytorch(small(torch), layer="second", size=16, exporter="torchscript")


# ----- weights and architectures ---------------------------------------------


def test_state_dictionaries_in_every_wrapping(torch, tmp_path, monkeypatch):
    network = small(torch)
    state = network.state_dict()
    (tmp_path / "mine_here.py").write_text("made = None\n\ndef make():\n    return made()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import mine_here  # noqa: PLC0415 - written above

    mine_here.made = type(network)
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "checkpoint.pt")
    torch.save({"model": state}, tmp_path / "old.th", _use_new_zipfile_serialization=False)
    files = ["plain.pth", "checkpoint.pt", "old.th"]
    if pytest.importorskip("safetensors", reason="safetensors is not installed"):
        from safetensors.torch import save_file  # noqa: PLC0415

        save_file(state, tmp_path / "plain.safetensors")
        files.append("plain.safetensors")
    for file in files:
        product = export_pytorch("mine_here:make", weights=tmp_path / file, size=16, trust=True, exporter="torchscript")
        check(torch, product, network, 16)


@pytest.mark.parametrize("library", ["torchvision.models", "timm"])
def test_published_architectures_with_weights_of_ones_own(torch, tmp_path, library):
    """Ten classes where the architecture has a thousand: the weights decide."""
    needs("torchvision", *({library} & {"timm"}))
    vision()
    if library == "timm":
        import timm  # noqa: PLC0415 - optional

        network, layer = timm.create_model("resnet10t", num_classes=10), "layer4"
    else:
        network, layer = vision().resnet18(num_classes=10), "layer4.1.bn2"
    network = randomised(network, 64)
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    name = "timm:resnet10t" if library == "timm" else "torchvision.models:resnet18"
    product = export_pytorch(
        name,
        weights=tmp_path / "mine.pth",
        layer=layer,
        exporter="torchscript",
        size=(64 if library == "timm" else None),
    )
    assert product.model.shape("input")[2:] == ((64, 64) if library == "timm" else ("height", "width"))
    assert product.labels is None
    check(torch, product, network, 64)


def test_a_hugging_face_folder(torch, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    labels = {0: "cat", 1: "dog", 2: "bird"}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.ViTConfig(image_size=32, patch_size=8, num_labels=3, id2label=labels, **sizes)
    torch.manual_seed(0)
    network = transformers.ViTForImageClassification(config).eval()
    network.save_pretrained(tmp_path)
    described = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(described | {"do_resize": True}))
    product = export_pytorch(tmp_path, layer="vit.layers.1.layernorm_before", exporter="torchscript")
    assert product.labels == ["cat", "dog", "bird"]
    known = parse_preprocessing(product.preprocessing)
    assert (known.size, known.scale, known.mean, known.std) == ((32, 32), 1 / 255, (0.5,) * 3, (0.25,) * 3)
    exported = check(torch, product, network, 32)
    assert exported.score == "logits"
    # A file without the head: its weights would be random.
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    state = load_file(tmp_path / "model.safetensors")
    save_file(
        {k: v for k, v in state.items() if "classifier" not in k}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ExportError, match=r"weights lack classifier\..*, which would be random"):
        export_pytorch(tmp_path)


# ----- programs ---------------------------------------------------------------


def saved_program(torch, path, *, free=True):
    shapes = ({0: torch.export.Dim("batch", min=1)},) if free else None
    network = small(torch)
    torch.export.save(torch.export.export(network, (torch.zeros(2, 3, 16, 16),), dynamic_shapes=shapes), path)
    return network


@pytest.mark.parametrize("layer", ["BatchNorm2d", "Dropout"])
def test_a_program_in_training_mode_says_so(torch, tmp_path, layer):
    made = getattr(torch.nn, layer)(*[4] if layer == "BatchNorm2d" else [])
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), made, torch.nn.Flatten(), torch.nn.Linear(144, 2)).train()
    program = torch.export.export(network, (torch.randn(2, 3, 8, 8),))
    torch.export.save(program, tmp_path / "training.pt2")
    with pytest.raises(ExportError, match=r"training mode .* call eval"):
        export_pytorch(tmp_path / "training.pt2")


def test_a_program_needs_no_code(torch, tmp_path):
    network = saved_program(torch, tmp_path / "small.pt2")
    product = export_pytorch(tmp_path / "small.pt2", layer="second", exporter="dynamo")
    assert product.layers["second"].kind == "Conv2d"
    assert product.model.shape("input") == ("batch", 3, 16, 16)
    assert (
        b"pkg." not in product.model.to_proto().SerializeToString()
    )  # the exporter's notes, places of files among them
    check(torch, product, network, 16, batch=7)


def test_a_program_of_a_fixed_batch_stays_fixed(torch, tmp_path):
    network = saved_program(torch, tmp_path / "small.pt2", free=False)
    product = export_pytorch(tmp_path / "small.pt2", exporter="torchscript")
    assert product.model.shape("input") == (2, 3, 16, 16)
    assert any("fixed at 2, as in the program" in warning for warning in product.warnings)
    check(torch, product, network, 16, batch=2)


def rewritten(source, target, change, only=""):
    """The archive with members changed: `change(name, bytes)` gives bytes, or `None` to leave one out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = change(name, old.read(name)) if only in name else old.read(name)
            if content is not None:
                new.writestr(name, content)


EVIL = "__import__('pathlib').Path('touched').touch()"


class Evil:
    def __reduce__(self):
        return exec, (EVIL.replace("__import__('pathlib')", "import pathlib; pathlib"),)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("Symbol('s", f"{EVIL} or Symbol('s", "which is not arithmetic"),
        ("Symbol('s", f'Add("{EVIL}") + Symbol(\'s', "which is not arithmetic"),
        ("torch.ops.aten.linear.default", "torch.hub.load", "which is not an operator on tensors"),
        ("torch.ops.aten.linear.default", "torch.ops.aten.from_file.default", "which is not an operator on tensors"),
        ('"name": "x"', f'"name": "x={EVIL}"', "which is not a Python name"),
    ],
)
def test_a_program_that_would_run_code_is_refused(torch, tmp_path, monkeypatch, old, new, said):
    monkeypatch.chdir(tmp_path)
    saved_program(torch, tmp_path / "good.pt2")

    def change(_name, content):
        text = content.decode()
        replaced = text.replace(old, new if old.startswith('"') else json.dumps(new)[1:-1])
        assert replaced != text
        return replaced.encode()

    rewritten(tmp_path / "good.pt2", tmp_path / "bad.pt2", change, only="models/model.json")
    with pytest.raises(ExportError, match=said):
        export_pytorch(tmp_path / "bad.pt2")
    assert not (tmp_path / "touched").exists()


def test_pickles_within_a_program_are_refused(torch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved_program(torch, tmp_path / "good.pt2")
    file = io.BytesIO()
    torch.save((Evil(),), file)
    rewritten(tmp_path / "good.pt2", tmp_path / "bad.pt2", lambda _n, _c: file.getvalue(), only="sample_inputs/")
    with pytest.raises(ExportError, match=r"holds 'data/sample_inputs/model\.pt', which is more than plain tensors"):
        export_pytorch(tmp_path / "bad.pt2")
    with zipfile.ZipFile(tmp_path / "good.pt2", "a") as archive:
        archive.writestr("good/data/aotinductor/model/model.so", b"\x7fELF")
    with pytest.raises(
        ExportError, match=r"model\.so', which may be code; save it again from PyTorch, or pass --trust"
    ):
        export_pytorch(tmp_path / "good.pt2")
    assert not (tmp_path / "touched").exists()


# ----- TorchScript ------------------------------------------------------------


def test_torchscript_needs_trust_and_proves_its_layers(torch, tmp_path):
    network = small(torch)
    script = torch.jit.script(network)
    torch.jit.save(script, tmp_path / "script.pt")
    with pytest.raises(ExportError, match=r"a TorchScript is a program.*pass --trust"):
        export_pytorch(tmp_path / "script.pt")
    with pytest.raises(InputError, match="dynamo exporter takes no TorchScript"):
        export_pytorch(tmp_path / "script.pt", trust=True, exporter="dynamo", size=16)
    product = export_pytorch(tmp_path / "script.pt", layer="second", trust=True, size=16)
    assert product.layers["second"].kind == "Conv2d"
    assert "relu" not in product.layers  # called twice: which one is not to be told
    check(torch, product, network, 16)
    with pytest.raises(TargetError, match=r"cannot find the output of 'relu' in the TorchScript; export the net"):
        export_pytorch(tmp_path / "script.pt", layer="relu", trust=True, size=16)


# ----- what is refused --------------------------------------------------------


def test_pickled_networks_are_refused_and_not_run(torch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(torch.nn.Linear(3, 2), tmp_path / "whole.pth")
    with pytest.raises(ExportError, match=r"an object of class torch.nn.modules.linear.Linear, .*state_dict\(\)"):
        export_pytorch(tmp_path / "whole.pth", trust=True)
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "evil.bin").write_bytes(pickle.dumps(Evil(), protocol=2))
    for file in ("evil.pt", "evil.bin"):
        with pytest.raises(ExportError, match=r"would run whatever code the file names|damaged weights"):
            export_pytorch(tmp_path / file, trust=True)
    assert not (tmp_path / "touched").exists()


def test_weights_that_do_not_fit_are_named(torch, tmp_path):
    state = small(torch).state_dict()
    factory = {"source": "exporters.pytorch.trained:lenet", "trust": True, "size": 32}
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ExportError, match=r"lacks conv1\.weight, .* and 5 more and has first\.0\.weight, .*which"):
        export_pytorch(**factory, weights=tmp_path / "other.pth")
    with pytest.raises(ExportError, match=r"holds weights without their network; give the network as module:factory"):
        export_pytorch(tmp_path / "other.pth")
    torch.save({"weights": [1, 2]}, tmp_path / "list.pth")
    with pytest.raises(ExportError, match="its entry 'weights' is a list, not a tensor"):
        export_pytorch(**factory, weights=tmp_path / "list.pth")
    network = torch.nn.Linear(4, 2)
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "shape.pth")
    with pytest.raises(ExportError, match=r"weight is \(2, 3\), not \(2, 4\)"):
        export_pytorch(network, weights=tmp_path / "shape.pth")


def test_a_lightning_checkpoint_is_unwrapped(torch, tmp_path):
    network, other = small(torch), small(torch)
    entries = {f"model.{key}": value for key, value in network.state_dict().items()}
    checkpoint = {"epoch": 3, "state_dict": {**entries, "loss.weight": torch.ones(6)}}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    check(torch, export_pytorch(other, weights=tmp_path / "last.ckpt", size=16), network, 16)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("exporters.pytorch.trained:lenet", "would be run; pass --trust"),
        ("torchvision.models:resnet19", "no classifier 'resnet19'; did you mean 'resnet18'"),
        ("torchvision.models:resnet18", "without weights would be random; .*IMAGENET1K_V1"),
        ("timm:resnet10x", "timm has no model 'resnet10x'; did you mean"),
        ("nowhere.pt2", "no such file"),
    ],
)
def test_names_that_are_refused(torch, source, said):
    needs("torchvision", "timm")
    vision()
    with pytest.raises(ExplainError, match=said):
        export_pytorch(source)


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("not_a_network", "returns a Tensor; it must return a torch.nn.Module"),
        ("needs_an_argument", "failed with TypeError"),
        ("nothing", "failed with AttributeError"),
    ],
)
def test_factories_that_make_no_network(torch, factory, said):
    with pytest.raises(ExportError, match=said):
        export_pytorch(f"exporters.pytorch.trained:{factory}", trust=True)


def test_layers_that_are_not_there(torch):
    network = small(torch)
    with pytest.raises(TargetError, match="no module 'secnd' in the network; did you mean 'second'"):
        export_pytorch(network, layer="secnd", size=16)
    with pytest.raises(TargetError, match=r"'relu' \(ReLU\) returns a tensor 2 time\(s\).*no call 2"):
        export_pytorch(network, layer="relu", call=2, size=16)


def test_networks_that_do_not_classify_images(torch):
    nn = torch.nn

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return [{"maps": self.conv(x), "boxes": "none"}]

    with pytest.raises(ExportError, match="output 'output_0_boxes' is a str, not a tensor"):
        export_pytorch(Odd(), size=16)
    with pytest.raises(ExportError, match=r"does not run on an input of shape \[1, 3, 224, 224\].*give its --size"):
        export_pytorch(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 2)))


@pytest.mark.parametrize("kept", [0, 5, 1000, 0.5, 0.99])
def test_files_cut_short(torch, tmp_path, repository, kept):
    network = small(torch)
    torch.save(network.state_dict(), tmp_path / "whole.pth")
    torch.jit.save(torch.jit.script(network), tmp_path / "whole.pt")
    shutil.copy(repository / "models" / "shapes.pt2", tmp_path / "whole.pt2")
    for file in ("whole.pth", "whole.pt", "whole.pt2"):
        content = (tmp_path / file).read_bytes()
        cut = tmp_path / f"cut{file[5:]}"
        cut.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
        with pytest.raises(ExportError, match=r"fetch the file again|is it complete"):
            export_pytorch(cut, trust=True)
        if file == "whole.pth":
            with pytest.raises(ExportError, match=r"fetch the file again|is it complete"):
                export_pytorch(network, weights=cut)


def test_archives_that_lie(torch, tmp_path):
    torch.save(small(torch).state_dict(), tmp_path / "good.pth")
    for name, said in {
        "../../evil": "named outside",
        "/evil": "named outside",
        "good\\..\\evil": "named outside",
    }.items():
        rewritten(tmp_path / "good.pth", tmp_path / "bad.pth", lambda _n, content: content)
        with zipfile.ZipFile(tmp_path / "bad.pth", "a") as archive:
            archive.writestr(name, b"x")
        with pytest.raises(ExportError, match=said):
            export_pytorch(tmp_path / "bad.pth")
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good/data.pkl", b"\0" * 20_000_000)
    with pytest.raises(ExportError, match="claims 20000000 bytes"):
        export_pytorch(tmp_path / "bomb.pth")
    lying = (2**40).to_bytes(8, "little") + b"{}"
    (tmp_path / "lying.safetensors").write_bytes(lying)
    (tmp_path / "short.safetensors").write_bytes((500).to_bytes(8, "little") + b'{"a":')
    for file in ("lying.safetensors", "short.safetensors"):
        with pytest.raises(ExportError, match=r"longer than the file|not a PyTorch file"):
            export_pytorch(small(torch), weights=tmp_path / file)
