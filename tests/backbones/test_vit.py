"""Where weights of transformers models are looked for, and what is said when they are not there."""

import urllib.error
from types import SimpleNamespace

import pytest

from depthg.backbones import vit as backbone_vit
from depthg.backbones.vit import find_source, patch_size
from depthg.backbones.weights import read_state_dict


@pytest.fixture
def hub(monkeypatch):
    """A hub that answers with a status or an error, an empty local cache, and no request that leaves the machine."""
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(backbone_vit, "_is_cached", lambda hub_id: False)

    def answers(answer):
        def urlopen(request, timeout):
            if isinstance(answer, Exception):
                raise answer
            return SimpleNamespace(close=lambda: None)

        monkeypatch.setattr(backbone_vit.urllib.request, "urlopen", urlopen)

    return answers


def status(code):
    return urllib.error.HTTPError("https://hub", code, "", {}, None)


@pytest.mark.parametrize("answer", [None, status(401), status(403)])
def test_a_hub_that_answers_is_left_to_the_hub_client(hub, answer):
    hub(answer)
    source = find_source("group/model", "hf:group/model")
    assert (source.path, source.options) == ("group/model", {})


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(status(404), "answers 404"), (status(503), "answers 503"), (OSError("no route"), "no route")],
)
def test_what_cannot_be_downloaded_is_named_with_the_way_out(hub, answer, reason):
    hub(answer)
    with pytest.raises(FileNotFoundError, match=rf"group/model.*{reason}.*backbone.weights=PATH"):
        find_source("group/model", "hf:group/model")


def test_local_places_that_are_no_model_folder(tmp_path):
    file = tmp_path / "weights.bin"
    file.write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"weights\.bin is a file; vit takes a folder"):
        find_source(file, "vit")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        find_source(tmp_path, "vit")


@pytest.mark.parametrize(("size", "side"), [(8, 8), ((16, 16), 16)])
def test_the_side_of_square_patches(size, side):
    assert patch_size(SimpleNamespace(patch_size=size)) == side


@pytest.mark.parametrize("size", [None, (8, 16)])
def test_other_patches_are_refused(size):
    with pytest.raises(ValueError, match="one number is needed"):
        patch_size(SimpleNamespace(patch_size=size))


def test_weight_files_that_are_missing_or_damaged_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights file at .*absent\.pth"):
        read_state_dict(tmp_path / "absent.pth")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\x00" * 20)
    with pytest.raises(ValueError, match=r"damaged\.safetensors cannot be read as a weights file"):
        read_state_dict(damaged)
