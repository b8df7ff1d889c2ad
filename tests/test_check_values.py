"""The single checks: each finds what is broken, and names the line; each passes where nothing is."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from sam3dnet.check import attention, commands, compiled, device, installation, iteration, memory, precision, prediction
from sam3dnet.check.example import Example, make_examples
from sam3dnet.check.result import CheckResult, Skipped
from sam3dnet.check.run import run_check
from sam3dnet.check.setting import Setting
from sam3dnet.cli import check as command
from sam3dnet.inference.predictor import PredictionReport
from sam3dnet.network import compiling
from sam3dnet.network.sam3d import SAM3D

CPU = torch.device("cpu")
QUICK = Setting(CPU, quick=True)


class AsAnotherDevice(Setting):
    """The CPU, as if it were a device that has to be compared with it; it computes in float32."""

    is_cpu = False  # type: ignore[assignment]
    half = None  # type: ignore[assignment]


OTHER = AsAnotherDevice(CPU, quick=True)


def failed(lines: Sequence[CheckResult]) -> list[str]:
    return [line.name for line in lines if line.status == "failed"]


@pytest.fixture(scope="module")
def example() -> Example:
    return make_examples(QUICK)[0]


@pytest.fixture
def block(example: Example, monkeypatch: pytest.MonkeyPatch) -> Iterator[nn.Module]:
    """A block of the example that all checks take, to put something wrong into."""
    monkeypatch.setattr(precision, "make_examples", lambda _: [example])
    module = example.network.image_encoder.blocks[2]
    yield module
    module._forward_hooks.clear()
    module._backward_hooks.clear()


def in_half_precision(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * 2 if torch.is_autocast_enabled("cpu") else output


def test_a_wrong_operator_in_half_precision_is_found_and_named(
    block: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--device", "cpu", "--quick", "--only", "half-precision", "--json", str(tmp_path / "check.json")]
    assert command.main(options) == 0
    block.register_forward_hook(in_half_precision)
    assert command.main(options) == 1
    errors = capsys.readouterr().err.splitlines()
    names = ("features", "logits", "gradient")
    assert [line.partition(" failed (")[0] for line in errors] == [
        f"sam3d_check: half-precision: tiny, frozen, {name} in bfloat16" for name in names
    ]


def test_a_wrong_gradient_of_one_layer_is_found_and_named(block: nn.Module, example: Example) -> None:
    reference = example.values(CPU)
    assert failed(list(precision.compare("x", example, reference, reference, torch.float32))) == []
    name = "image_encoder.blocks.2.adapter.up.weight"
    gradients = reference.gradients | {name: reference.gradients[name].flip(0)}
    lines = list(precision.compare("x", example, replace(reference, gradients=gradients), reference, torch.bfloat16))
    assert failed(lines) == ["tiny, frozen, gradient in bfloat16"]
    assert lines[-1].message == "worst in image_encoder.blocks.2"
    gradients = reference.gradients | {name: torch.zeros_like(reference.gradients[name])}
    lines = list(precision.compare("x", example, replace(reference, gradients=gradients), reference, torch.bfloat16))
    assert failed(lines) == ["tiny, frozen, gradient in bfloat16"]


@pytest.mark.parametrize(
    ("parameter", "part"),
    [
        ("image_encoder.blocks.2.adapter.up.weight", "image_encoder.blocks.2"),
        ("decoder.stages.0.convs.1.norm.bias", "decoder.stages.0"),
        ("image_encoder.patch_embed.channel_mix", "image_encoder.patch_embed"),
        ("detail_to_tokens.weight", "detail_to_tokens.weight"),
    ],
)
def test_parts_are_what_a_figure_shows(parameter: str, part: str) -> None:
    assert precision.part_of(parameter) == part


def test_nothing_that_is_no_number_passes(example: Example, block: nn.Module) -> None:
    reference = example.values(CPU)
    broken = replace(
        reference,
        levels=[level * torch.nan for level in reference.levels],
        outputs=[output * torch.nan for output in reference.outputs],
        loss=float("nan"),
        gradients=reference.gradients | {"image_encoder.blocks.1.adapter.up.bias": torch.full((48,), torch.nan)},
    )
    assert len(failed(list(precision.compare("x", example, broken, reference, torch.bfloat16)))) == 4


def test_another_device_is_compared_with_the_cpu_in_float32(block: nn.Module) -> None:
    with pytest.raises(Skipped, match="the device is the CPU"):
        next(precision.check_float32(QUICK))
    assert failed(list(precision.check_float32(OTHER))) == []
    calls = iter((1.0, 1.01))
    block.register_forward_hook(lambda module, inputs, output: output * next(calls))
    assert "tiny, frozen, logits in float32" in failed(list(precision.check_float32(OTHER)))


def test_float32_is_compared_without_tf32() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with precision.without_tf32():
            assert not torch.backends.cudnn.allow_tf32 and torch.backends.cudnn.enabled
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_device_without_half_precision_is_skipped() -> None:
    with pytest.raises(Skipped, match="compute in float32"):
        next(precision.check_half_precision(OTHER))


def test_attention_that_scales_wrongly_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = F.scaled_dot_product_attention
    assert attention.compare_kernels("tiny", 32, CPU, torch.float32).message == "torch can take flash"

    def wrong(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        is_reference = torch.backends.cuda.math_sdp_enabled()
        return genuine(query, key, value, scale=None if is_reference else 0.2)

    monkeypatch.setattr(F, "scaled_dot_product_attention", wrong)
    assert failed(list(attention.check_attention(QUICK)))[0] == "heads of 32 (tiny) in float32"


def test_attention_without_a_fused_kernel_is_a_failed_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "FUSED", (SDPBackend.EFFICIENT_ATTENTION,))  # a CPU has none
    (line,) = run_check("attention", QUICK)
    assert (line.status, line.message[:39]) == ("failed", "RuntimeError: No viable backend for sca")
    with pytest.raises(Skipped, match="no fused attention to choose from on mps"):
        next(attention.check_attention(Setting(torch.device("mps"))))


def test_an_estimate_that_is_too_low_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = memory.QUICK_PLANS[1]
    monkeypatch.setattr(memory, "training_cost", lambda *a, **k: 1 << 20)
    line = memory.compare_memory(plan, QUICK)
    assert (line.status, line.limit) == ("failed", "0.85 to 1.15")
    assert line.message.startswith("estimated 1 MiB, measured ")


def test_a_plan_that_does_not_fit_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "training_cost", lambda *a, **k: 1 << 60)
    line = memory.compare_memory(memory.QUICK_PLANS[1], QUICK)
    assert (line.status, line.message[:6]) == ("skipped", "needs ")
    with pytest.raises(Skipped, match="does not count the peak of memory on mps"):
        next(memory.check_memory(Setting(torch.device("mps"))))


def test_windows_that_lose_the_constant_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = prediction.predict_slabs

    @torch.inference_mode()
    def shifted(*arguments: Any, **options: Any) -> Iterator[Tensor]:
        for slab in genuine(*arguments, **options):
            slab = slab.clone()
            slab[1, -1, 4, 5] += 0.01
            yield slab

    monkeypatch.setattr(prediction, "predict_slabs", shifted)
    assert failed(list(prediction.check_prediction(QUICK))) == ["constant logits"]


def test_a_device_that_predicts_otherwise_than_the_cpu_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = list(prediction.check_prediction(OTHER))
    compared = ["logits as on the CPU", "share of other labels"]
    assert [line.name for line in lines] == [*compared, "constant logits", "speed"]
    assert failed(lines) == []
    genuine = prediction.copied_to

    def with_classes_mixed_up(network: SAM3D, device: torch.device) -> SAM3D:
        copy = genuine(network, device)
        head = list(copy.decoder.seg_layers)[-1].get_parameter("weight")
        head.data = head.data.roll(1, 0)
        return copy

    monkeypatch.setattr(prediction, "copied_to", with_classes_mixed_up)
    assert failed(list(prediction.check_prediction(OTHER)))[:2] == compared


def test_iterations_are_told_and_not_judged() -> None:
    lines = list(iteration.check_iteration(QUICK))
    assert [line.name for line in lines] == ["nnU-Net", "sam3dnet, tiny, trained whole"]
    assert all(line.value is not None and line.value > 0 and line.limit == "" for line in lines)
    assert lines[1].message.startswith("8x16x16, batch 2, not compiled; ")


@pytest.mark.parametrize(
    ("setting", "free_gib", "crop"),
    [
        (QUICK, 100, (8, 16, 16)),
        (Setting(CPU), 100, (32, 48, 32)),
        (Setting(torch.device("cuda:0")), 11, (64, 96, 96)),
        (Setting(torch.device("cuda:0")), 23, (96, 128, 128)),
    ],
)
def test_the_crop_that_is_timed_fits_the_device(
    monkeypatch: pytest.MonkeyPatch, setting: Setting, free_gib: int, crop: tuple[int, ...]
) -> None:
    monkeypatch.setattr(iteration, "free_bytes", lambda _: free_gib << 30)
    assert iteration.choose_sizes(setting)[0] == crop


def test_steps_are_timed_in_turn_after_one_that_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    seconds = iter((100.0, 100.0, *(3.0, 1.0, 5.0, 2.0, 4.0) * 2))
    monkeypatch.setattr(iteration, "REPETITIONS", 5)
    monkeypatch.setattr(iteration, "time_once", lambda run, device: (run(), next(seconds))[1])
    medians = iteration.time_in_turn({name: lambda name=name: calls.append(name) for name in "ab"}, Setting(CPU))
    assert calls == ["a", "b"] * 6
    assert medians == {"a": 1.5, "b": 1.5}


def test_a_command_that_fails_is_named_and_leaves_no_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fold = tmp_path / "fold_0"
    fold.mkdir()
    (fold / "training_log.jsonl").write_text("{}\n")
    monkeypatch.setattr(commands, "write_phantom_dataset", lambda folder, *a: folder)
    monkeypatch.setattr(commands, "plan_and_preprocess", lambda **k: None)
    monkeypatch.setattr(commands, "train_fold", lambda *a, **k: fold)
    monkeypatch.setattr(commands, "predict", lambda **k: PredictionReport(failed={"phantom": "no memory"}))
    before = dict(os.environ)
    lines = list(commands.check_commands(QUICK))
    assert failed(lines) == ["train", "continue", "predict"]
    assert lines[-1].message == "no memory"
    assert dict(os.environ) == before


@pytest.fixture
def with_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "reason_not_to_compile", lambda _: None)


def compile_with(compiler: Callable[..., Any]) -> Callable[[SAM3D], None]:
    return lambda network: compiling.compile_network(network, compiled.StrictCompiler(compiler))


def test_a_compiled_network_that_computes_otherwise_is_found(
    with_a_compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "compile_strictly", compile_with(lambda function: function))
    lines = list(compiled.check_compiled(Setting(CPU)))
    assert [line.name.split()[2] for line in lines] == ["logits", "loss", "gradient"]
    assert failed(lines) == []

    def wrong(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: 2 * function(*given) if function.__name__ == "answer" else function(*given)

    monkeypatch.setattr(compiled, "compile_strictly", compile_with(wrong))
    assert "tiny, frozen, logits in float32" in failed(list(compiled.check_compiled(Setting(CPU))))


def test_a_compiler_that_fails_is_a_failed_line(with_a_compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("Python.h: no such file")

    monkeypatch.setattr(compiled, "compile_strictly", compile_with(lambda function: broken))
    (line,) = run_check("compiled", Setting(CPU))
    assert (line.status, line.message) == ("failed", "RuntimeError: Python.h: no such file")


@pytest.mark.slow
def test_the_compiled_network_is_the_network(with_a_compiler: None) -> None:
    (*lines,) = run_check("compiled", Setting(CPU))
    assert [line.status for line in lines] == ["ok"] * 3


@pytest.mark.parametrize(
    ("kind", "switch", "programs", "packages", "reason"),
    [
        ("cpu", None, ["gcc"], ["triton"], "training on cpu is not compiled"),
        ("cuda", "F", ["gcc"], ["triton"], "nnUNet_compile turns it off"),
        ("cuda", "true", ["gcc"], ["triton"], None),
        ("cuda", None, ["gcc"], [], "triton, which compiles for cards, is not installed"),
        ("cuda", None, [], ["triton"], "no compiler: none of gcc, clang, cc, cl is here"),
    ],
)
def test_what_is_not_compiled_is_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    switch: str | None,
    programs: list[str],
    packages: list[str],
    reason: str | None,
) -> None:
    monkeypatch.delenv("nnUNet_compile", raising=False)
    if switch:
        monkeypatch.setenv("nnUNet_compile", switch)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: name if name in programs else None)
    monkeypatch.setattr(compiled, "find_spec", lambda name: name if name in packages else None)
    setting = Setting(torch.device(kind))
    if reason is None:
        assert compiled.reason_not_to_compile(setting) is None
        return
    with pytest.raises(Skipped, match=reason):
        next(compiled.check_compiled(setting))


def test_versions_that_do_not_fit_are_found() -> None:
    wrong = ["torch >=2.4,<2.5", "no-such-package>1", "pytest<1; extra == 'test'", "numpy>=1"]
    line = installation.judge_versions(wrong)
    assert line.status == "failed"
    assert f"torch {installation._version('torch')} does not fit <2.5,>=2.4; type: pip install 'torch" in line.message
    assert "no-such-package is not installed; type: pip install 'no-such-package>1'" in line.message
    assert "pytest" not in line.message and "numpy" not in line.message
    assert installation.judge_versions(wrong[3:]).status == "ok"


def test_folders_of_nnunet_are_judged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "nowhere"))
    monkeypatch.delenv("nnUNet_preprocessed")
    lines = [installation.judge_folder(name) for name in ("nnUNet_raw", "nnUNet_results", "nnUNet_preprocessed")]
    assert [line.status for line in lines] == ["ok", "failed", "skipped"]
    assert not any(str(tmp_path) in line.message for line in lines)


@pytest.mark.parametrize(
    ("capability", "built", "has"),
    [
        ((8, 6), ["sm_80", "sm_90a"], True),
        ((8, 0), ["sm_86"], False),
        ((6, 1), ["sm_70", "sm_80"], False),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((7, 5), ["compute_80"], False),
        ((12, 0), ["sm_120"], True),
    ],
)
def test_a_torch_without_kernels_for_the_card_is_found(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], built: list[str], has: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    line = device.judge_kernels(torch.device("cuda:0"))
    assert line.status == ("ok" if has else "failed")
    assert has or "install a torch that was built for this card" in line.message


def test_a_driver_whose_card_torch_does_not_see_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.shutil, "which", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert failed(list(device.check_device(QUICK))) == ["card"]
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "this torch is built without CUDA" in list(device.check_device(QUICK))[-1].message
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    assert [line.status for line in device.check_device(QUICK)] == ["ok"]
