"""SAM's official weights in the 3D encoder: equal features, and errors that name the file."""

from functools import partial

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from torch.nn import functional

from sam3dnet.errors import CheckpointError
from sam3dnet.network.image_encoder import ImageEncoder3D
from sam3dnet.network.sam3d import SAM3D
from sam3dnet.network.sam_file import check_sam_file
from sam3dnet.network.sam_weights import convert_sam_state, is_new, load_sam_weights
from sam3dnet.network.segmentation import ENCODER_SIZES

TOLERANCE = 1e-4
HEADS = {"vit_b": 12, "vit_l": 16, "vit_h": 16}


def official_encoder(name, img_size):
    size = ENCODER_SIZES[name]
    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        img_size=img_size,
        embed_dim=size.width,
        depth=size.depth,
        num_heads=HEADS[name],
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        global_attn_indexes=size.global_blocks,
        window_size=14,
        out_chans=256,
    )
    for parameter_name, parameter in encoder.named_parameters():
        if "pos" in parameter_name:  # zero by default: they would prove nothing
            torch.nn.init.normal_(parameter, std=0.1)
    return encoder.eval()


def save_official(encoder, path):
    torch.save({f"image_encoder.{name}": value for name, value in encoder.state_dict().items()}, path)


def compare(name, token_stride, pixels, tmp_path):
    official = official_encoder(name, 448)
    save_official(official, tmp_path / "sam.pth")
    encoder = ImageEncoder3D(ENCODER_SIZES[name], 1, (2, 28, 28), token_stride).eval()
    load_sam_weights(encoder, tmp_path / "sam.pth")
    slice_BCyx = torch.randn(1, 1, pixels, pixels)
    volume = slice_BCyx[:, :, None].expand(-1, -1, 2 * token_stride[0], -1, -1)
    with torch.no_grad():
        upsampled = functional.interpolate(slice_BCyx, (448, 448), mode="bilinear", align_corners=False)
        expected = official(upsampled.expand(-1, 3, -1, -1))
        found = encoder(volume)[-1]
    assert expected.abs().mean() > 0.1
    for depth in range(2):
        assert (found[:, :, depth] - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize(("token_stride", "pixels"), [((16, 16, 16), 448), ((2, 4, 4), 112)])
def test_constant_depth_gives_the_features_of_vit_b(token_stride, pixels, tmp_path):
    compare("vit_b", token_stride, pixels, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_l", "vit_h"])
def test_constant_depth_gives_the_features_of_larger_encoders(name, tmp_path):
    compare(name, (4, 4, 4), 112, tmp_path)


@pytest.fixture(scope="module")
def vit_b_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "sam_vit_b.pth"
    save_official(official_encoder("vit_b", 1024), path)
    return path


def make_network(encoder="vit_b"):
    strides = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
    return SAM3D(
        2, 3, True, encoder=encoder, patch_size=(16, 40, 24), token_stride=(8, 8, 8), strides=strides, pretrained=True
    )


def test_the_official_1024_pixel_file_loads_into_any_grid_and_only_new_parts_stay(vit_b_file):
    network = make_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    load_sam_weights(network.image_encoder, vit_b_file)
    after = network.state_dict()
    untouched = {name for name in after if torch.equal(after[name], before[name])}
    encoder_untouched = {name.removeprefix("image_encoder.") for name in untouched if name.startswith("image_encoder.")}
    new = {name for name in network.image_encoder.state_dict() if is_new(name)}
    constant_in_both = {name for name in encoder_untouched if "norm" in name or name.endswith(".bias")}
    assert encoder_untouched - constant_in_both == new - constant_in_both
    assert network(torch.randn(1, 2, 5, 9, 17))[0].shape == (1, 3, 5, 9, 17)


def test_medsam_files_load_with_or_without_a_wrapper(vit_b_file, tmp_path):
    state = torch.load(vit_b_file, weights_only=True)
    torch.save({"model": {**state, "mask_decoder.iou_token.weight": torch.zeros(1, 256)}}, tmp_path / "medsam.pth")
    one, other = make_network(), make_network()
    load_sam_weights(one.image_encoder, vit_b_file)
    load_sam_weights(other.image_encoder, tmp_path / "medsam.pth")
    name = "blocks.3.attn.qkv.weight"
    assert torch.equal(one.image_encoder.state_dict()[name], other.image_encoder.state_dict()[name])


def test_weights_of_another_size_are_refused_by_name(vit_b_file):
    with pytest.raises(CheckpointError, match=r"sam_vit_b\.pth: SAM weights: .* has shape"):
        load_sam_weights(make_network("vit_l").image_encoder, vit_b_file)


def test_missing_entries_and_damaged_files_are_refused(vit_b_file, tmp_path):
    own = make_network().image_encoder.state_dict()
    with pytest.raises(CheckpointError, match="entries are missing, the first is image_encoder"):
        convert_sam_state({}, own)
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(vit_b_file.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match="not a readable SAM checkpoint"):
        load_sam_weights(make_network().image_encoder, damaged)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_file_is_known_by_its_names_and_shapes(zipped, vit_b_file, tmp_path):
    state = {name: value[:1].expand_as(value) for name, value in torch.load(vit_b_file, weights_only=True).items()}
    path = tmp_path / "small.pth"  # the old format writes expanded values whole
    torch.save({**state, "mask_decoder.x": torch.zeros(3)}, path, _use_new_zipfile_serialization=zipped)
    check_sam_file(path, "vit_b")
    with pytest.raises(CheckpointError, match=r"small\.pth holds vit_b, not vit_h; plan with --encoder vit_b"):
        check_sam_file(path, "vit_h")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_encoder.neck.0.weight": torch.zeros(3, 768, 1, 1)}, "image_encoder.neck.0.weight has shape"),
        ({"image_encoder.blocks.3.attn.qkv.bias": None}, "1 entries are missing, .*blocks.3.attn.qkv.bias"),
        ({"image_encoder.other": torch.zeros(1)}, "image_encoder.other has shape .* no such part"),
        (
            {"image_encoder.pos_embed": None},
            "expected a checkpoint in SAM's format with an encoder of the size vit_b, ",
        ),
        ({"image_encoder.blocks.11.norm1.bias": torch.zeros(5)}, "norm1.bias has shape"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_before_a_network_is_built(change, message, vit_b_file, tmp_path):
    state = {**torch.load(vit_b_file, weights_only=True, mmap=True), **change}
    torch.save({name: value for name, value in state.items() if value is not None}, tmp_path / "changed.pth")
    with pytest.raises(CheckpointError, match=rf"changed\.pth: .*{message}"):
        check_sam_file(tmp_path / "changed.pth", "vit_b")


@pytest.mark.parametrize("content", [[1, 2], {"model": 3}, {"epoch": 3}, {"model": {"a": "b"}}])
def test_other_files_are_no_sam_files(content, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: expected a checkpoint in SAM's format"):
        check_sam_file(tmp_path / "other.pth", "vit_b")


def test_checking_a_file_builds_an_encoder_without_memory(vit_b_file, monkeypatch):
    built = []

    def build(*arguments):
        built.append(ImageEncoder3D(*arguments))
        return built[-1]

    monkeypatch.setattr("sam3dnet.network.sam_file.ImageEncoder3D", build)
    check_sam_file(vit_b_file, "vit_b")
    (encoder,) = built
    assert all(value.is_meta for value in encoder.state_dict().values())
