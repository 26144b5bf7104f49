"""Depth networks: the real loading path on tiny random checkpoints, nothing downloaded.

Compared with transformers' own processing where that runs without torchvision, else with written-out expectations.
"""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")

from depth_checkpoints import TWO_HEADS, depth_anything, dpt, photo, zoedepth  # noqa: E402

from depthg.backbones.vit import IMAGENET_MEAN, IMAGENET_STD  # noqa: E402
from depthg.data.files import DataError  # noqa: E402
from depthg.depth.network import FAR, NEAR, DepthNetwork, Prediction, check_finite, decode, encode  # noqa: E402
from depthg.depth.preprocess import read_preprocessing  # noqa: E402

SIZES = [(48, 80), (81, 47), (150, 222)]
KINDS = ["zoedepth", "two_heads", "depth_anything", "metric", "dpt"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("networks")
    return {
        "zoedepth": zoedepth(root / "zoedepth"),
        "two_heads": zoedepth(root / "two_heads", TWO_HEADS),
        "depth_anything": depth_anything(root / "depth_anything"),
        "metric": depth_anything(root / "metric", metric=True),
        "dpt": dpt(root / "dpt"),
    }


def theirs(folder):
    """The model of transformers, loaded by transformers alone."""
    return transformers.AutoModelForDepthEstimation.from_pretrained(folder).eval()


def processor(folder):
    """Their image processor, as they set it up from the folder."""
    name = "ZoeDepthImageProcessorPil" if folder.name in ("zoedepth", "two_heads") else "DPTImageProcessorPil"
    return getattr(transformers, name).from_pretrained(folder)


# ---- preprocessing


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_input_equals_the_image_processor(folders, kind, size):
    image = photo(*size)
    ours = DepthNetwork(folders[kind]).prepare(image)
    truth = torch.as_tensor(processor(folders[kind])(images=image, return_tensors="pt").pixel_values[0])
    assert ours.dtype == torch.float32 and torch.equal(ours, truth)


@pytest.mark.parametrize(
    ("size", "expected"),
    [  # (height, width) of the photo -> of the input, by the published rules
        ((480, 640), {"zoedepth": (384, 512), "depth_anything": (518, 686), "dpt": (384, 384)}),
        ((1024, 2048), {"zoedepth": (384, 736), "depth_anything": (518, 1036), "dpt": (384, 384)}),
        ((640, 480), {"zoedepth": (672, 512), "depth_anything": (686, 518), "dpt": (384, 384)}),
        ((20, 3000), {"zoedepth": (32, 512), "depth_anything": (14, 518), "dpt": (384, 384)}),
    ],
)
def test_input_sizes_of_the_published_networks(tmp_path, size, expected):
    """Without preprocessor_config.json the values of the architecture are taken: those of the published checkpoints."""
    configs = {
        "zoedepth": transformers.ZoeDepthConfig(),
        "depth_anything": transformers.DepthAnythingConfig(),
        "dpt": transformers.DPTConfig(),
    }
    for name, config in configs.items():
        config.save_pretrained(tmp_path / name)
        found = DepthNetwork(tmp_path / name).preprocessing
        assert found.input_size(*size) == expected[name], name
        imagenet = name == "depth_anything"
        assert DepthNetwork(tmp_path / name).prepare(np.zeros((*size, 3), np.uint8)).shape == (3, *expected[name])
        assert tuple(found.settings["image_mean"]) == (IMAGENET_MEAN if imagenet else (0.5,) * 3)
        assert tuple(found.settings["image_std"]) == (IMAGENET_STD if imagenet else (0.5,) * 3)
        assert found.border == (name == "zoedepth") and found.divisor == 1


def test_dpt_on_dinov2_takes_photos_at_their_own_size_filled_up_to_patches(tmp_path):
    backbone = transformers.Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, patch_size=14)
    transformers.DPTConfig(backbone_config=backbone, add_projection=True).save_pretrained(tmp_path)
    network = DepthNetwork(tmp_path)
    image = photo(30, 45)
    x = network.prepare(image)
    assert x.shape == (3, 42, 56) and network.metric
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    inner = (torch.from_numpy(image.copy()) / 255 - mean) / std
    torch.testing.assert_close(x[:, 6:36, 5:50], inner.permute(2, 0, 1))
    x[:, 6:36, 5:50] = 0
    assert not x.any()
    # a ramp over the input, at 16 / 14 of its resolution as this network gives it, cut back to the photo
    ramp = torch.arange(64).float().expand(48, 64)
    trimmed = network.preprocessing.trim(ramp, (30, 45))
    assert trimmed.shape == (30, 45)
    expected = (torch.arange(5, 50) + 0.5) * 64 / 56 - 0.5
    torch.testing.assert_close(trimmed[3, 2:-2], expected[2:-2], atol=0.06, rtol=0)  # cubic convolution bends ramps


SETTINGS = {
    "size": ({"size": 70}, (42, 70)),
    "multiple": ({"ensure_multiple_of": 28}, (56, 84)),
    "aspect": ({"keep_aspect_ratio": False}, (56, 56)),
    "resize": ({"do_resize": False}, (48, 80)),
    "pad": ({"do_resize": False, "do_pad": True, "size_divisor": 14}, (56, 84)),
    "resize and pad": ({"size": 70, "do_pad": True, "size_divisor": 28}, (56, 84)),
}


@pytest.mark.parametrize("key", SETTINGS)
def test_values_of_the_file_are_used(folders, tmp_path, key):
    changes, size = SETTINGS[key]
    path = shutil.copytree(folders["depth_anything"], tmp_path / "network") / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert DepthNetwork(path.parent).prepare(photo(48, 80)).shape == (3, *size)


def test_scale_mean_and_std_of_the_file_are_used(folders, tmp_path):
    path = shutil.copytree(folders["depth_anything"], tmp_path / "network") / "preprocessor_config.json"
    stored, image = json.loads(path.read_text()) | {"do_resize": False}, photo(28, 42)
    plain = torch.from_numpy(image.copy()).permute(2, 0, 1).float()
    for changes, expected in (
        ({"do_normalize": False}, plain / 255),
        ({"do_normalize": False, "do_rescale": False}, plain),
        ({"rescale_factor": 0.5, "image_mean": 1, "image_std": [2, 2, 2]}, (plain / 2 - 1) / 2),
    ):
        path.write_text(json.dumps(stored | changes))
        torch.testing.assert_close(DepthNetwork(path.parent).prepare(image), expected)


def test_resampling_of_the_file_is_used(folders, tmp_path):
    path = shutil.copytree(folders["depth_anything"], tmp_path / "network") / "preprocessor_config.json"
    inputs = {}
    for resample in (0, 2, 3):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"resample": resample}))
        inputs[resample] = DepthNetwork(path.parent).prepare(photo(90, 131))
    assert not torch.equal(inputs[0], inputs[2]) and not torch.equal(inputs[2], inputs[3])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "JSONDecodeError"),
        ('{"size": {"shortest_edge": 5}}', r"height and width \(None, None\)"),
        ('{"size": {"height": 0, "width": 56}}', r"height and width \(0, 56\)"),
        ('{"resample": 9}', "ValueError: .*9"),
        ('{"ensure_multiple_of": 0}', "ensure_multiple_of=0"),
        ('{"do_pad": true, "size_divisor": 0}', "size_divisor=0"),
        ('{"image_std": [1, 0, 1]}', "image_std"),
        ('{"rescale_factor": NaN}', "rescale_factor=nan"),
        ('{"image_mean": [1, 2]}', "mean must have 3 elements"),
        ("[]", "AttributeError"),
    ],
)
def test_damaged_preprocessing_names_the_file(folders, tmp_path, text, message):
    path = shutil.copytree(folders["depth_anything"], tmp_path / "network") / "preprocessor_config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"preprocessor_config\.json cannot be used: .*{message}"):
        DepthNetwork(path.parent)


def test_zoedepth_names_resampling_that_it_does_not_have(folders, tmp_path):
    path = shutil.copytree(folders["zoedepth"], tmp_path / "network") / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"resample": 1}))
    with pytest.raises(ValueError, match=r"resample=1 is not 2 \(bilinear\) or 3 \(bicubic\)"):
        DepthNetwork(path.parent)


def test_plain_dpt_takes_squares_only(folders, tmp_path):
    path = shutil.copytree(folders["dpt"], tmp_path / "network") / "preprocessor_config.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"keep_aspect_ratio": True}))
    assert DepthNetwork(path.parent).prepare(photo(48, 80)).shape == (3, 64, 64)
    path.write_text(json.dumps(stored | {"size": {"height": 64, "width": 96}}))
    with pytest.raises(ValueError, match="takes square inputs only"):
        DepthNetwork(path.parent)


# ---- predictions


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["dpt", "depth_anything", "metric"])
def test_depth_equals_model_and_post_processing(folders, kind, size):
    network = DepthNetwork(folders[kind])
    inputs = network.prepare(photo(*size))[None]
    with torch.no_grad():
        output = theirs(folders[kind])(pixel_values=inputs)
    depth = processor(folders[kind]).post_process_depth_estimation(output, target_sizes=[size])[0]["predicted_depth"]
    raw = output.predicted_depth
    expected = depth if kind == "metric" else 1 - ((depth - raw.min()) / (raw.max() - raw.min())).clamp(0, 1)
    ours = network(photo(*size))
    assert ours.shape == size and ours.dtype == np.float32 and network.metric == (kind == "metric")
    assert np.ptp(ours) > 0.05
    np.testing.assert_allclose(ours, expected, atol=1e-4 * (20 if kind == "metric" else 1))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["zoedepth", "two_heads"])
def test_zoedepth_is_metric_and_loses_its_border(folders, kind, size):
    """Up to the padded photo, without the padding: `3 sqrt(side / 2)` pixels on each side."""
    network = DepthNetwork(folders[kind])
    with torch.no_grad():
        raw = theirs(folders[kind])(pixel_values=network.prepare(photo(*size))[None]).predicted_depth
    down, right = (int(3 * (side / 2) ** 0.5) for side in size)
    whole = F.interpolate(raw[None], (size[0] + 2 * down, size[1] + 2 * right), mode="bicubic")[0, 0]
    ours = network(photo(*size))
    assert network.metric and ours.shape == size
    np.testing.assert_allclose(ours, whole[down:-down, right:-right], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_flip_averages_with_the_mirrored_photo(folders, kind):
    image, size = photo(48, 80), (48, 80)
    plain, both = DepthNetwork(folders[kind]), DepthNetwork(folders[kind], flip=True)
    inputs = plain.prepare(image)[None]
    there = plain.predict(inputs, [size])[0].values
    back = plain.predict(inputs.flip(-1), [size])[0].values[:, ::-1]
    found = both.predict(inputs, [size])[0].values
    np.testing.assert_allclose(found, (there + back) / 2, atol=1e-5)
    assert np.abs(found - there).max() > 1e-4
    assert both.identity != plain.identity


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_single_photos_give(folders, kind):
    network = DepthNetwork(folders[kind])
    inputs = torch.stack([network.prepare(photo(48, 80, seed)) for seed in range(5)])
    together = network.predict(inputs, [(48, 80)] * 5)
    for one, found in zip(inputs, together, strict=True):
        np.testing.assert_allclose(found.values, network.predict(one[None], [(48, 80)])[0].values, atol=1e-5)


def test_photos_of_both_domains_in_one_batch(folders):
    """The two heads of ZoeDepth are voted for by the batch; a photo must not be measured by its neighbours' head."""
    network = DepthNetwork(folders["two_heads"])
    inputs = torch.stack([network.prepare(photo(48, 80, seed)) for seed in range(5)])
    with torch.no_grad():
        logits = network.model(pixel_values=inputs).domain_logits
        gap = (logits[:, 0] - logits[:, 1]).sort().values
        network.model.metric_head.mlp_classifier.linear2.bias[1] += (gap[1] + gap[2]) / 2  # 2 photos to 3
    alone = [network.predict(one[None], [(48, 80)])[0].values for one in inputs]
    with torch.no_grad():
        domains = network.model(pixel_values=inputs).domain_logits.argmax(1)
        voted = network.model(pixel_values=inputs).predicted_depth
    assert sorted(domains.tolist()) in ([0, 0, 0, 1, 1], [0, 0, 1, 1, 1])
    assert max(np.abs(voted[i].numpy() - one).max() for i, one in enumerate(alone)) > 1e-3
    for found, one in zip(network.predict(inputs, [(48, 80)] * 5), alone, strict=True):
        np.testing.assert_allclose(found.values, one, atol=1e-5)


def test_near_is_0_and_far_is_1(folders):
    network = DepthNetwork(folders["depth_anything"])
    inverse = np.linspace(9, 2, 56, dtype=np.float32)[:, None].repeat(84, 1)  # near above, far below
    depth = network.finish(Prediction(inverse, False), (28, 42))
    assert depth[0].max() < 0.02 and depth[-1].min() > 0.98 and (np.diff(depth, axis=0) > 0).all()
    scaled = network.finish(Prediction(inverse * 7 + 3, False), (28, 42))  # inverse depth has no scale and no offset
    np.testing.assert_allclose(scaled, depth, atol=1e-5)
    flat = network.finish(Prediction(np.full((56, 84), 3, np.float32), False), (28, 42))
    assert np.isfinite(flat).all() and flat.min() >= 0 and flat.max() <= 1
    metres = network.finish(Prediction(np.full((56, 84), 0, np.float32), True), (28, 42))
    assert (metres == np.float32(NEAR)).all()


def test_output_says_what_the_network_gives(folders):
    for kind, metric in (("zoedepth", True), ("metric", True), ("depth_anything", False), ("dpt", False)):
        assert DepthNetwork(folders[kind]).metric == metric
        for output in ("metres", "inverse"):
            network = DepthNetwork(folders[kind], output=output)
            assert network.metric == (output == "metres")
            found = network(photo(48, 80))
            assert np.isfinite(found).all() and found.min() >= 0
            if network.metric:  # random weights: any distance
                assert found.min() >= np.float32(NEAR)
            else:
                assert found.max() <= 1 and found.max() - found.min() > 0.2
    with pytest.raises(ValueError, match=r"depth\.output='metre' is not one of auto, metres, inverse"):
        DepthNetwork(folders["dpt"], output="metre")


def test_not_finite(folders):
    values = np.ones((4, 4), np.float32)
    check_finite(Prediction(values, True), "a.jpg", "net")
    values[1, 1] = np.nan
    with pytest.raises(DataError, match=r"net gives depth that is not finite for a\.jpg"):
        check_finite(Prediction(values, True), "a.jpg", "net")
    network = DepthNetwork(folders["dpt"])
    with torch.no_grad():
        network.model.head.head[4].bias.fill_(float("inf"))
    with pytest.raises(DataError, match="not finite"):
        network(photo(48, 80))


def test_tiny_and_extreme_photos(folders):
    for kind in KINDS:
        network = DepthNetwork(folders[kind])
        for size in ((1, 1), (2, 9), (8, 300)):
            assert network(photo(*size)).shape == size


# ---- loading


def test_nothing_is_loaded_before_it_is_needed_and_memory_is_given_back(folders, monkeypatch):
    loads = []
    original = transformers.AutoModelForDepthEstimation.from_pretrained
    monkeypatch.setattr(
        transformers.AutoModelForDepthEstimation, "from_pretrained",
        lambda *a, **k: loads.append(1) or original(*a, **k),
    )  # fmt: skip
    network = DepthNetwork(folders["dpt"])
    assert network.identity and network.metric is False and not loads
    first = network(photo(48, 80))
    assert len(loads) == 1
    network.unload()
    assert np.array_equal(network(photo(48, 80)), first) and len(loads) == 2


def test_identity_follows_the_content(folders, tmp_path):
    first = DepthNetwork(folders["depth_anything"]).identity
    copy = shutil.copytree(folders["depth_anything"], tmp_path / "copy")
    assert DepthNetwork(copy).identity == first  # wherever it lies
    seen = {first, DepthNetwork(copy, output="metres").identity, DepthNetwork(copy, flip=True).identity}
    seen.add(DepthNetwork(depth_anything(tmp_path / "other", seed=1)).identity)
    settings = copy / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace("56", "70"))
    seen.add(DepthNetwork(copy).identity)
    assert len(seen) == 5


def test_weights_only_torch_files_are_read(folders, tmp_path):
    folder = shutil.copytree(folders["dpt"], tmp_path / "network")
    (folder / "model.safetensors").unlink()
    torch.save(theirs(folders["dpt"]).state_dict(), folder / "pytorch_model.bin")
    assert np.array_equal(DepthNetwork(folder)(photo(48, 80)), DepthNetwork(folders["dpt"])(photo(48, 80)))


class Exploit:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_neither_pickles_nor_code_of_a_checkpoint_run(folders, tmp_path):
    folder = shutil.copytree(folders["dpt"], tmp_path / "network")
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Exploit(tmp_path / "run")}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="network could not be loaded"):
        DepthNetwork(folder)(photo(48, 80))
    folder = shutil.copytree(folders["dpt"], tmp_path / "code")
    stored = json.loads((folder / "config.json").read_text())
    stored |= {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "mine.Config", "AutoModelForDepthEstimation": "mine.Net"},
    }
    (folder / "config.json").write_text(json.dumps(stored))
    (folder / "mine.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'run')!r})\n")
    with pytest.raises(ValueError, match=r"the configuration of .*code cannot be read"):
        DepthNetwork(folder)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["dpt", "depth_anything", "zoedepth"])
def test_weights_that_the_network_does_not_use_may_be_missing(folders, tmp_path, kind):
    """Published DPT checkpoints lack them; they must not be random, or every load would look like another network."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(folders[kind], tmp_path / "network")
    weights = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in weights.items() if "fusion_stage.layers.0.residual_layer1" not in k}
    assert 0 < len(weights) - len(kept) < 20
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    network = DepthNetwork(folder)
    assert np.array_equal(network(photo(48, 80)), DepthNetwork(folders[kind])(photo(48, 80)))
    unused = {k: v for k, v in network.model.state_dict().items() if "fusion_stage.layers.0.residual_layer1" in k}
    assert unused and not any(value.any() for value in unused.values())


def test_missing_weights_are_named(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(folders["dpt"], tmp_path / "network")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if not k.startswith("head.")}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match=r"network does not fit DPTForDepthEstimation: head\.head\.0\.bias is missing"):
        DepthNetwork(folder)(photo(48, 80))
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(ValueError, match="network could not be loaded as AutoModelForDepthEstimation"):
        DepthNetwork(folder)(photo(48, 80))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="network could not be loaded"):
        DepthNetwork(folder)(photo(48, 80))


def test_other_architectures_are_named(tmp_path):
    config = transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "classifier")
    with pytest.raises(
        ValueError,
        match=r"classifier holds a vit model, which is no depth network .* pass depth\.model=FOLDER .*ZoeDepth, Depth "
        r"Anything, DPT, for instance Intel/zoedepth-nyu-kitti",
    ):
        DepthNetwork(tmp_path / "classifier")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json; the depth network takes a folder saved by"):
        DepthNetwork(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is a file; the depth network takes a folder"):
        DepthNetwork(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
        DepthNetwork(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"the configuration of .* cannot be read"):
        DepthNetwork(tmp_path)


def test_offline_says_what_to_download_and_where_to_put_it(tmp_path):
    """In a fresh process, because the hub client reads its environment at import; nothing listens at the address."""
    code = "from depthg.depth.network import DepthNetwork\nDepthNetwork()"
    settings = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | settings
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    error = run.stderr.strip().splitlines()[-1]
    assert error.startswith("FileNotFoundError: the weights of the depth network (hub id Intel/zoedepth-nyu-kitti)"), (
        error
    )
    assert "HF_HUB_OFFLINE is set" in error and error.endswith("pass depth.model=FOLDER")
    assert "Get http://127.0.0.1:9/Intel/zoedepth-nyu-kitti (config.json and the weights)" in error


def test_unreachable_hub_is_named(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: (_ for _ in ()).throw(OSError("no route")))
    with pytest.raises(FileNotFoundError, match=r"no answer from http\S+ \(no route\)\. Get .* pass --model FOLDER"):
        DepthNetwork("nobody/depth", give="--model FOLDER")


def test_hub_cache_is_used_without_network(folders, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--nobody--depth" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(folders["depth_anything"], snapshot)
    (tmp_path / "models--nobody--depth" / "refs").mkdir()
    (tmp_path / "models--nobody--depth" / "refs" / "main").write_text("abc")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: pytest.fail("the network was asked"))
    network, local = DepthNetwork("nobody/depth"), DepthNetwork(folders["depth_anything"])
    assert network.identity == local.identity and network.preprocessing.settings == local.preprocessing.settings
    assert np.array_equal(network(photo(48, 80)), local(photo(48, 80)))


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"the depth network a/b needs transformers: .*depthg\[transformers\]"):
        DepthNetwork("a/b")


@pytest.mark.parametrize("kind", ["zoedepth", "dpt"])
def test_an_old_transformers_is_named(folders, monkeypatch, kind):
    """Before 5.4 there are no Pillow processors; in 5.4 they ask for torchvision."""

    def needs_torchvision(**settings):
        raise ImportError("requires the Torchvision library")

    config, path = DepthNetwork(folders[kind]).config, folders[kind] / "preprocessor_config.json"
    names = dict.fromkeys(("ZoeDepthImageProcessorPil", "DPTImageProcessorPil"), needs_torchvision)
    for old in (SimpleNamespace(__version__="4.57.6"), SimpleNamespace(__version__="5.4.0", **names)):
        monkeypatch.setitem(sys.modules, "transformers", old)
        message = rf"need transformers 5\.5 or later, but {old.__version__} is installed: python -m pip install -U"
        for file in (path, None):
            with pytest.raises(ImportError, match=message):
                read_preprocessing(file, config)


# ---- storage


@given(st.lists(st.floats(0.0101, FAR), min_size=1, max_size=20))
def test_metres_survive_storage_to_two_hundredths_of_a_percent(values):
    metres = np.array([values], np.float32)
    stored = encode(Prediction(metres, True))
    assert stored.dtype == np.uint16
    np.testing.assert_allclose(decode(stored, True).values, metres, rtol=1e-4)


def test_storage_of_extremes():
    metres = np.array([[0, 1e-9, NEAR, FAR, 1e9]], np.float32)
    np.testing.assert_allclose(decode(encode(Prediction(metres, True)), True).values, metres.clip(NEAR, FAR), rtol=1e-5)
    for values in ([[2, 2, 2]], [[5, 9, 7]], [[-3, 0, 1e30]]):
        inverse = np.array(values, np.float32)
        low, span = inverse.min(), max(np.ptp(inverse), 1e-30)
        found = decode(encode(Prediction(inverse, False)), False).values
        np.testing.assert_allclose(found, (inverse - low) / span, atol=1e-5)


def test_storage_does_not_change_relative_depth(folders):
    network = DepthNetwork(folders["depth_anything"])
    found = network.predict(network.prepare(photo(48, 80))[None], [(48, 80)])[0]
    stored = decode(encode(found), False)
    np.testing.assert_allclose(network.finish(stored, (48, 80)), network.finish(found, (48, 80)), atol=3e-5)
