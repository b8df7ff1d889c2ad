"""The known files of weights: their genuine figures, registries of the user's own, and what sam3d_info says of them."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from weights_server import GOOD, NAME, entry, write_registry

from sam3dnet.cli.info import info
from sam3dnet.errors import CheckpointError
from sam3dnet.network.sam_file import check_sam_file
from sam3dnet.network.weights_cache import cache_folder, has_digest
from sam3dnet.network.weights_file import require_sam_weights
from sam3dnet.network.weights_registry import families, known_file, known_files

# Written out here, from what several public projects say that load these files; the code's own may not be trusted.
GENUINE = {
    ("sam", "vit_b"): (
        "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth",
        375042383,
        "sha256:ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        "01ec64d29a2fca3f0661936605ae66f8",
    ),
    ("sam", "vit_l"): (
        "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_l_0b3195.pth",
        None,
        "sha256:3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        "0b3195507c641ddb6910d2bb5adee89c",
    ),
    ("sam", "vit_h"): (
        "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth",
        2564550879,
        "sha256:a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        "4b8939a88964f0f4ff5f5b2642c598a6",
    ),
    ("medsam", "vit_b"): (
        "https://zenodo.org/records/10689643/files/medsam_vit_b.pth?download=1",
        375049145,
        "md5:3bb6db55bd0c9ca30b61248bca72f8d6",
        "3bb6db55bd0c9ca30b61248bca72f8d6",
    ),
}
ONLINE = os.environ.get("SAM3D_ONLINE") == "1"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder()


def test_official_files_are_the_genuine_ones() -> None:
    found = {(file.family, file.encoder): (file.address, file.bytes, file.digest) for file in known_files()}
    assert found == {key: figures[:3] for key, figures in GENUINE.items()}


def test_characters_in_sams_names_are_the_start_of_the_md5() -> None:
    for (family, encoder), (address, _, _, md5) in GENUINE.items():
        name = known_file(family, encoder).name
        assert name == address.rpartition("/")[2].partition("?")[0]
        assert family == "medsam" or name.removesuffix(".pth").endswith("_" + md5[:6])


@pytest.mark.skipif(not ONLINE, reason="set SAM3D_ONLINE=1 to download the real files, 4 GB in all")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("family", "encoder"), GENUINE)
def test_the_real_files_pass(family: str, encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAM3D_OFFLINE")
    path = require_sam_weights(encoder, family)
    assert has_digest(path, f"md5:{GENUINE[family, encoder][3]}")
    check_sam_file(path, encoder)
    path.unlink()


def test_a_registry_adds_files_and_replaces_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = write_registry(tmp_path / "r.json", entry("http://mirror/x", bytes=None, licence="ours"))
    monkeypatch.setenv("SAM3D_WEIGHTS_REGISTRY", str(registry))
    monkeypatch.setenv("SAM3D_WEIGHTS_URL", "http://elsewhere/")
    assert families() == ["sam", "medsam", "own"]
    file = known_file("own", "vit_b")
    assert (file.name, file.bytes, file.licence, file.source) == (NAME, None, "ours", "http://mirror/x")
    assert known_file("sam", "vit_h").source == "http://elsewhere/sam_vit_h_4b8939.pth"
    with pytest.raises(CheckpointError, match="weights 'own': there are none for vit_l, only for vit_b"):
        known_file("own", "vit_l")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "sam"}, "entry 0: family is 'sam'"),
        ({"family": "../x"}, "entry 0: family is '../x'"),
        ({"name": "sam_vit_b_01ec64.pth"}, "entry 0: name is 'sam_vit_b_01ec64.pth'"),
        ({"name": "../../x.pth"}, "entry 0: name is"),
        ({"encoder": "small"}, "entry 0: encoder is 'small'"),
        ({"address": "file:///etc/passwd"}, "entry 0: address is"),
        ({"digest": "01ec64"}, "entry 0: digest is '01ec64'"),
        ({"digest": None}, "entry 0: digest is None"),
        ({"bytes": "7"}, "entry 0: bytes is '7'"),
        ({"bytes": True}, "entry 0: bytes is True"),
    ],
)
def test_an_entry_that_is_incomplete_or_takes_an_official_name_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = write_registry(tmp_path / "r.json", entry("http://mirror/x", **change))
    monkeypatch.setenv("SAM3D_WEIGHTS_REGISTRY", str(registry))
    with pytest.raises(CheckpointError, match=rf"\$SAM3D_WEIGHTS_REGISTRY: .*r.json {message}"):
        known_files()
    assert "$SAM3D_WEIGHTS_REGISTRY" in "\n".join(info())


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read"), ("[]", "holds a list"), ('{"format": "other", "weights": []}', "has another format")],
)
def test_a_file_that_is_no_registry_is_refused(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r.json").write_text(text)
    monkeypatch.setenv("SAM3D_WEIGHTS_REGISTRY", str(tmp_path / "r.json"))
    with pytest.raises(CheckpointError, match=message):
        families()


@pytest.mark.parametrize("change", [{"name": "b.pth"}, {"encoder": "vit_l"}])
def test_an_entry_that_is_there_twice_is_refused(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = write_registry(tmp_path / "r.json", entry("http://m/x"), entry("http://m/x", **change))
    monkeypatch.setenv("SAM3D_WEIGHTS_REGISTRY", str(registry))
    with pytest.raises(CheckpointError, match=r"entry 1: .* is there twice"):
        known_files()


def test_info_says_of_every_file_what_is_here_and_what_to_type(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = write_registry(tmp_path / "r.json", entry("http://mirror/x"))
    monkeypatch.setenv("SAM3D_WEIGHTS_REGISTRY", str(registry))
    monkeypatch.setenv("SAM3D_WEIGHTS", str(tmp_path))
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(GOOD)
    (cache / "sam_vit_h_4b8939.pth").write_bytes(b"half")
    text = "\n".join(info(weights=True))
    assert f"{cache / NAME}: present, verified (sha256:{hashlib.sha256(GOOD).hexdigest()})" in text
    assert f"{cache / 'sam_vit_h_4b8939.pth'}: present, but another file or damaged: sha256:" in text
    assert f"{tmp_path / 'sam_vit_b_01ec64.pth'}: not there\n  {cache / 'sam_vit_b_01ec64.pth'}: not there" in text
    for (family, encoder), (address, size, digest, _) in GENUINE.items():
        name = known_file(family, encoder).name
        assert f"curl -fL -o {name} '{address}'" in text
        assert f"{digest.partition(':')[0]}sum {name}    # expected {digest.partition(':')[2]}" in text
        assert f"then copy it here, to {tmp_path / name}" in text
        assert f"{name}: {family}, {encoder}, {f'{size:,} bytes' if size else 'size not known'}" in text
    assert "CC BY 4.0" in text
    assert "http://mirror/x" not in text
