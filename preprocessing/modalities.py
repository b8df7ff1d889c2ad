"""What made an image, told by the names of its channels, by which nnU-Net chooses their normalisation too."""

import re
from collections.abc import Iterable

SOFT_TISSUE_HU = (-160.0, 240.0)  # of CT, that become black and white where nothing else is known

_MICROSCOPY = re.compile(
    r"(?<![a-z])(s?s?tem|sem|sbem|em|fib.?sem|cryo.?em|microscop\w*|fluorescen\w*|confocal|light.?sheet|two.?photon|"
    r"bright.?field|phase.?contrast|histolog\w*|dapi|hoechst|e?gfp|rfp|mcherry|nuclei)(?![a-z])",
    re.IGNORECASE,
)


def shows_microscopy(channel_names: Iterable[str]) -> bool:
    """Tell whether images come from a microscope, and not from a patient who lies somehow in a scanner."""
    return any(_MICROSCOPY.search(name) for name in channel_names)
