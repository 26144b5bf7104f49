"""A run as an ONNX file: onnxruntime gives the ids of the segmenter at any size, and the file says what they mean."""

import json
import shutil
from types import MethodType

import numpy as np
import pytest
import torch
from miniature import settings
from PIL import Image
from torch.nn import functional as F

from depthg.backbones import load_backbone
from depthg.backbones.dino import position_embedding, published_positions
from depthg.export import main
from depthg.inference import onnx_file
from depthg.inference.onnx_file import KEY, made_up, share_equal, write_onnx
from depthg.inference.onnx_graph import any_size, positions
from depthg.inference.segmenter import Segmenter
from depthg.model.legend import checksum_of, write_legend
from depthg.model.loaded_run import load_run
from depthg.train import train

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def named(shared_run, tmp_path_factory):
    """A copy of the run whose legend merges two clusters and makes one void."""
    run = shutil.copytree(shared_run, tmp_path_factory.mktemp("named") / "named")
    used = np.unique(Segmenter.load(run, device="cpu").predict(shared_run.parents[1] / "camvid/val/000.png").ids)
    given = {int(used[0]): "ground", int(used[1]): "ground", int(used[2]): None}
    write_legend(run, given, checksum_of(load_run(run).cluster.centroids), {"ground": (1, 2, 3)})
    return run


@pytest.fixture(scope="module")
def written(named, tmp_path_factory):
    """The file that the command writes."""
    file = tmp_path_factory.mktemp("onnx") / "run.onnx"
    assert main([str(named), "--onnx", str(file), "--scores"]) == 0
    return file


def session(file):
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def photo(height, width, seed):
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 7, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def test_photos_of_the_data_set_get_the_ids_of_predict(written, named, shared_tree):
    """At the size of the evaluation: nothing is scaled, so this is what ``predict`` gives."""
    segmenter = Segmenter.load(named, device="cpu")
    photos = [np.array(Image.open(path)) for path in sorted((shared_tree / "val").iterdir())]
    expected = np.stack([segmenter.predict(image).ids for image in photos])
    ids, scores = session(written).run(None, {"images": np.stack(photos).transpose(0, 3, 1, 2)})
    assert ids.dtype == np.uint8 and ids.shape == (3, 64, 64) and (ids == expected).mean() >= 0.999
    assert scores.dtype == np.float32 and scores.shape == (3, len(segmenter.names), 64, 64)
    assert (scores.argmax(1) == ids).all() and len(np.unique(ids)) > 2
    assert {segmenter.names.index("ground"), segmenter.names.index("void")} <= set(np.unique(ids))


@pytest.mark.parametrize("batch, height, width", [(1, 32, 32), (2, 96, 160), (3, 224, 64)])
def test_batch_and_size_are_free(written, named, batch, height, width):
    photos = [photo(height, width, seed) for seed in range(batch)]
    window = Segmenter.load(named, device="cpu", window=max(height, width))
    expected = np.stack([window.predict(image).ids for image in photos])
    ids = session(written).run(["ids"], {"images": np.stack(photos).transpose(0, 3, 1, 2)})[0]
    assert ids.shape == expected.shape and (ids == expected).mean() >= 0.999


def test_scores_are_those_of_the_segmenter_up_sampled_and_merged(written, named):
    segmenter = Segmenter.load(named, device="cpu")
    image = photo(64, 64, 5)
    scores = torch.from_numpy(segmenter.maps([segmenter.prepare(image)])[0].scores)
    expected = segmenter.merging.scores(F.interpolate(scores[None], (64, 64), mode="bilinear")[0].numpy())
    found = session(written).run(["scores"], {"images": image.transpose(2, 0, 1)[None]})[0][0]
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_the_metadata_says_what_goes_in_and_comes_out(written, named):
    about = json.loads(session(written).get_modelmeta().custom_metadata_map[KEY])
    segmenter = Segmenter.load(named, device="cpu")
    assert about["names"] == list(segmenter.names) and "ground" in about["names"] and about["names"][-1] == "void"
    assert about["palette"] == segmenter.colours.tolist() and [1, 2, 3] in about["palette"]
    assert (about["run"], about["multiple"], about["eval_size"]) == ("named", 32, [64, 64])
    assert about["legend"] is True and about["outputs"] == ["ids", "scores"]
    content = written.read_bytes()
    assert str(named.parent).encode() not in content and b"onnx_graph.py" not in content


def test_options_of_the_command(named, shared_tree, tmp_path, capsys, monkeypatch):
    file, compared = tmp_path / "plain.onnx", []
    own = onnx_file.share_equal

    def spy(segmenter, content, photos):
        compared.extend(photos)
        return own(segmenter, content, compared)

    monkeypatch.setattr(onnx_file, "share_equal", spy)
    command = [str(named), "--onnx", str(file), "--no-legend", "--check", str(shared_tree / "val")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "% of the ids are those of the run" in printed and "multiples of 32 -> ids, 11 names" in printed
    real = np.array(Image.open(shared_tree / "val" / "001.png"))
    assert any(np.array_equal(image, real) for image in compared) and len(compared) == 6 + 3
    assert [output.name for output in session(file).get_outputs()] == ["ids"]
    about = json.loads(session(file).get_modelmeta().custom_metadata_map[KEY])
    assert about["legend"] is False and len(about["names"]) == 11
    before = file.read_bytes()
    assert main(command) == 1 and "pass --overwrite to replace it" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert main([*command[:3], "--check", "no-such-photo", "--overwrite"]) == 1
    assert "no-such-photo" in capsys.readouterr().err and file.read_bytes() == before
    assert main([str(named), "--onnx", str(tmp_path)]) == 1 and "is a folder" in capsys.readouterr().err


@pytest.fixture
def small(named, written, monkeypatch):
    """A segmenter, for which the bytes of the file above stand ready."""
    segmenter = Segmenter.load(named, device="cpu")
    monkeypatch.setattr(onnx_file, "serialised", lambda *_: written.read_bytes())
    return segmenter


def test_a_graph_with_other_ids_is_not_written(small, tmp_path):
    small.merging.table = np.roll(small.merging.table, 1)
    small.legend.table[:] = np.roll(small.legend.table, 1)
    with pytest.raises(ValueError, match=r"of the ids of the ONNX graph are those of the run .* is not written"):
        write_onnx(small, tmp_path / "wrong.onnx")
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file(small, tmp_path, monkeypatch):
    (tmp_path / "run.onnx").write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write_onnx(small, tmp_path / "run.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["run.onnx"] and (tmp_path / "run.onnx").read_text() == "old"


def test_without_onnxruntime_it_says_that_nothing_was_compared(small, named, tmp_path, monkeypatch, capsys):
    real = onnx_file.importlib.util.find_spec
    monkeypatch.setattr(
        onnx_file.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else real(name)
    )
    assert main([str(named), "--onnx", str(tmp_path / "run.onnx")]) == 0
    assert "not compared with the run: onnxruntime is not installed" in capsys.readouterr().out


def test_a_missing_package_is_one_sentence(named, tmp_path, monkeypatch, capsys):
    real = onnx_file.importlib.util.find_spec
    monkeypatch.setattr(
        onnx_file.importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else real(name)
    )
    assert main([str(named), "--onnx", str(tmp_path / "run.onnx")]) == 1
    expected = "error: an ONNX file needs onnx and onnxscript: python -m pip install 'depthg[onnx]'\n"
    assert capsys.readouterr().err == expected and not list(tmp_path.iterdir())


def save_vit(folder, kind, **changes):
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    config = getattr(transformers, f"{kind}Config")(**sizes | {"image_size": 64, "patch_size": 8} | changes)
    model = getattr(transformers, f"{kind}Model")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["ViT", *(pytest.param(k, marks=pytest.mark.slow) for k in ("Dinov2", "DINOv3ViT"))])
def test_a_vit_takes_any_size_too(shared_tree, tmp_path, kind):
    network = f"backbone.name=hf:{save_vit(tmp_path / kind, kind)}"
    train(settings(shared_tree, f"runs_dir={tmp_path}", "name=vit", "val.panels=0", "iterations=4", network))
    segmenter = Segmenter.load(tmp_path / "vit", device="cpu")
    done = write_onnx(segmenter, tmp_path / "vit.onnx")
    assert done.equal >= 0.999 and done.metadata["backbone"] == kind and done.metadata["multiple"] == 8
    photos = [photo(56, 104, seed) for seed in range(3)]
    assert share_equal(segmenter, (tmp_path / "vit.onnx").read_bytes(), photos) >= 0.999
    assert {image.shape for image in made_up(segmenter)} == {(24, 32, 3), (40, 16, 3), (64, 64, 3)}


@pytest.mark.parametrize("published", [False, True])
def test_a_network_keeps_its_own_rule_for_positions(tmp_path, published):
    body = load_backbone(f"hf:{save_vit(tmp_path / 'vit', 'ViT')}").body
    owner = body.model.embeddings
    if published:
        owner.interpolate_pos_encoding = MethodType(published_positions, owner)
    for height, width in ((64, 64), (40, 96), (64, 72)):
        images = torch.rand(1, 3, height, width)
        with torch.no_grad():
            expected, kept = body(images)[0], owner.interpolate_pos_encoding
            with any_size(body):
                assert owner.interpolate_pos_encoding is not kept
                found = body(images)[0]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert owner.interpolate_pos_encoding == kept


def test_another_rule_for_positions_is_refused(shared_tree, tmp_path):
    network = f"backbone.name=hf:{save_vit(tmp_path / 'vit', 'Dinov2WithRegisters')}"
    train(settings(shared_tree, f"runs_dir={tmp_path}", "name=run", "val.panels=0", "iterations=4", network))
    with pytest.raises(ValueError, match="cannot be exported for images of any size: its position embedding at"):
        write_onnx(Segmenter.load(tmp_path / "run", device="cpu"), tmp_path / "run.onnx")
    assert not (tmp_path / "run.onnx").exists()


@pytest.mark.parametrize("h, w", [(7, 7), (7, 9), (3, 20), (1, 1), (14, 14)])
def test_positions_are_those_of_torch(h, w):
    table = torch.randn(1, 1 + 49, 6)
    grid = table[:, 1:].unflatten(1, (7, 7)).permute(0, 3, 1, 2)
    scaled = F.interpolate(grid, (h, w), mode="bicubic").flatten(2).transpose(1, 2)
    torch.testing.assert_close(positions(table, h, w, 0.0), torch.cat([table[:, :1], scaled], 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(positions(table, h, w, 0.1), position_embedding(table, h, w), rtol=0, atol=1e-5)
