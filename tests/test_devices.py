"""The choice of a device, with and without a card."""

import logging
from contextlib import nullcontext

import pytest
import torch
from fake_card import card_autocast

from sam3dnet.devices import autocast_on, better_half, choose_device, half_type, prediction_type
from sam3dnet.errors import Sam3dError


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def cards(no_card: None, monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Two cards; the list gets those that became torch's current one."""

    class Properties:
        total_memory = 3 * 2**30

    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"card {index}")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


@pytest.mark.usefixtures("no_card")
def test_cpu_is_chosen_where_there_is_no_card(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert choose_device() == torch.device("cpu")
    assert caplog.messages == [f"Device: cpu ({torch.get_num_threads()} threads)"]


@pytest.mark.usefixtures("no_card")
@pytest.mark.parametrize("name", ["cuda:0", "cuda:1", "mps", "tpu", "cuda:x"])
def test_asking_for_what_is_not_there_is_an_error(name: str) -> None:
    with pytest.raises(Sam3dError, match=rf"--device {name}: .* it sees cpu; choose one of these"):
        choose_device(name)


def test_card_is_chosen_first_but_cpu_can_be_had(cards: list[torch.device], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert choose_device() == choose_device("cuda") == torch.device("cuda:0")
    assert caplog.messages[0] == "Device: cuda:0 (card 0, 3 GiB)"
    assert choose_device("cpu") == torch.device("cpu")
    assert cards == [torch.device("cuda:0")] * 2


def test_the_second_card_can_be_had_and_becomes_the_current_one(cards: list[torch.device]) -> None:
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert cards == [torch.device("cuda:1")]
    with pytest.raises(Sam3dError, match=r"--device cuda:2: .* it sees cuda:0, cuda:1, cpu; choose one of these"):
        choose_device("cuda:2")


def test_each_of_torchruns_processes_touches_its_own_card_alone(
    cards: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device() == choose_device("cuda") == torch.device("cuda:1")
    assert cards == [torch.device("cuda:1")] * 2


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_card_that_only_emulates_bf16_takes_fp16(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
    monkeypatch.setattr(torch, "autocast", lambda device, dtype: (device, dtype))
    assert half_type(torch.device("cuda")) is expected
    assert autocast_on(torch.device("cuda")) == ("cuda", expected)


@pytest.mark.parametrize("trained_in", [torch.bfloat16, torch.float16, None])
def test_what_was_not_trained_in_fp16_is_not_predicted_in_it(
    monkeypatch: pytest.MonkeyPatch, trained_in: torch.dtype | None
) -> None:
    has_bf16 = True
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
    assert prediction_type(torch.device("cuda"), trained_in) is torch.bfloat16
    has_bf16 = False
    expected = torch.float16 if trained_in is torch.float16 else None
    assert prediction_type(torch.device("cuda"), trained_in) is expected
    assert prediction_type(torch.device("cpu"), trained_in) is None


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_fp16_that_others_switched_on_gives_way_to_bf16(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
    monkeypatch.setattr(torch, "autocast", lambda device, dtype: (device, dtype))
    card = torch.device("cuda")
    assert isinstance(better_half(card), nullcontext)
    with card_autocast(torch.bfloat16):
        assert isinstance(better_half(card), nullcontext)
    with card_autocast(torch.float16):
        assert better_half(card) == ("cuda", expected)


def test_the_cpu_computes_in_single_precision() -> None:
    assert half_type(torch.device("cpu")) is None
    with autocast_on(torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")
