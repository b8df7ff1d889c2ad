"""The choice of a device, with and without a card."""

import logging

import pytest
import torch

from sam3dnet.devices import autocast_on, choose_device, half_type
from sam3dnet.errors import Sam3dError


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def card(no_card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 3 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a card")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)


@pytest.mark.usefixtures("no_card")
def test_cpu_is_chosen_where_there_is_no_card(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert choose_device() == torch.device("cpu")
    assert caplog.messages == [f"Device: cpu ({torch.get_num_threads()} threads)"]


@pytest.mark.usefixtures("no_card")
@pytest.mark.parametrize("name", ["cuda", "mps", "tpu"])
def test_asking_for_what_is_not_there_is_an_error(name: str) -> None:
    with pytest.raises(Sam3dError, match=rf"--device {name}: .* it sees cpu; choose one of these"):
        choose_device(name)


@pytest.mark.usefixtures("card")
def test_card_is_chosen_first_but_cpu_can_be_had(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert choose_device() == torch.device("cuda")
    assert caplog.messages == ["Device: cuda (a card, 3 GiB)"]
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_card_that_only_emulates_bf16_takes_fp16(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
    monkeypatch.setattr(torch, "autocast", lambda device, dtype: (device, dtype))
    assert half_type(torch.device("cuda")) is expected
    assert autocast_on(torch.device("cuda")) == ("cuda", expected)


def test_the_cpu_computes_in_single_precision() -> None:
    assert half_type(torch.device("cpu")) is None
    with autocast_on(torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")
