"""Train sam3dnet with a part of it changed, for ablations; `real_sets.py --methods sam3d-VARIANT` calls it.

    python benchmarks/variants.py VARIANT -- DATASET fold0 --minutes 20 --root DIR

The rest of the line is that of sam3d_train. What is trained lies in the usual folders, and predicts only by this
command's own validation, since the network that sam3d_predict makes knows no variant where one changes its parts.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from torch import nn

from sam3dnet.cli import train
from sam3dnet.network.image_encoder import ImageEncoder3D, TransformerBlock3D
from sam3dnet.network.sam3d import SAM3D
from sam3dnet.training import optimizer


def leave_blocks(encoder: ImageEncoder3D, left: Iterable[int]) -> None:
    """Put the identity in the place of all blocks but these; embeddings, necks, stem and decoder stay."""
    kept = set(left)
    for index in range(len(encoder.blocks)):
        if index not in kept:
            encoder.blocks[index] = nn.Identity()


def start_at_identity(encoder: ImageEncoder3D) -> None:
    """Let every block begin as the identity: what it adds starts at zero."""
    for block in encoder.blocks:
        assert isinstance(block, TransformerBlock3D)
        for layer in (block.attn.proj, block.mlp["lin2"]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


def leave_adapters_out(encoder: ImageEncoder3D) -> None:
    """Take the adapters out of all blocks: they tune SAM's weights, and here there are none."""
    for block in encoder.blocks:
        for name in ("adapter", "attention_adapter", "mlp_adapter", "exit_adapter"):
            setattr(block, name, nn.Identity())


Change = Callable[[ImageEncoder3D], None]
VARIANTS: Mapping[str, Change] = MappingProxyType(
    {
        "no-blocks": lambda encoder: leave_blocks(encoder, ()),
        "every-second": lambda encoder: leave_blocks(encoder, range(1, len(encoder.blocks), 2)),
        "last-half": lambda encoder: leave_blocks(encoder, range(len(encoder.blocks) // 2, len(encoder.blocks))),
        "last-two": lambda encoder: leave_blocks(encoder, range(len(encoder.blocks) - 2, len(encoder.blocks))),
        "zero-start": start_at_identity,
        "no-adapters": leave_adapters_out,
        "as-is": lambda _encoder: None,
    }
)
RATES = MappingProxyType({"rate-1e-3": 1e-3, "rate-2e-3": 2e-3, "rate-5e-3": 5e-3})  # of all that starts at random


def change(variant: str) -> None:
    """Change what training makes: every network that is built from now on in this process, or how it learns."""
    if variant in RATES:
        optimizer.LEARNING_RATE_NEW = RATES[variant]
        return
    as_planned = SAM3D.__init__

    def changed(self: SAM3D, *arguments: object, **options: object) -> None:
        as_planned(self, *arguments, **options)  # type: ignore[arg-type]
        VARIANTS[variant](self.image_encoder)

    SAM3D.__init__ = changed  # type: ignore[assignment,method-assign]


def main() -> int:
    """Change, then train."""
    variant, separator, *line = sys.argv[1:]
    if separator != "--" or variant not in (*VARIANTS, *RATES):
        raise SystemExit(f"usage: variants.py {'|'.join((*VARIANTS, *RATES))} -- arguments of sam3d_train")
    change(variant)
    sys.argv = ["sam3d_train", *line]
    return train.main()


if __name__ == "__main__":
    sys.exit(main())
