"""From the files of an image, or an array, to the preprocessed image that the network sees, as in training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sam3dnet.errors import DatasetError
from sam3dnet.inference.cases import Case, accepted_checks, require_whole
from sam3dnet.inference.export import as_tensor
from sam3dnet.inference.models import LoadedModel
from sam3dnet.inference.reading import Preprocessed
from sam3dnet.preprocessing.cases import CHANNEL_SUFFIX_LENGTH, channel_of

ImageSource = str | Path | Sequence[str | Path] | np.ndarray


class ImageInput:
    """Reads and preprocesses images for one model.

    Args:
        model: Whose plan says how.

    Attributes:
        reader_writer: nnU-Net's reader and writer of the plan.
    """

    def __init__(self, model: LoadedModel):
        self._model = model
        self.reader_writer = model.plans.image_reader_writer_class()
        self._preprocessor = model.configuration.preprocessor_class(verbose=False)

    def take(self, image: ImageSource, spacing_mm: Sequence[float] | None = None) -> Preprocessed:
        """Read and preprocess one image, in files or in memory.

        Args:
            image: A file, of which further channels lie beside the first (CASE_0000, CASE_0001, ...); the files of all
                channels; or an array (Z, Y, X) or (C, Z, Y, X).
            spacing_mm: (Z, Y, X) of an array; a file says its own.

        Raises:
            DatasetError: As of `read` and `preprocess`, and if an array comes without its spacing.
        """
        if not isinstance(image, np.ndarray):
            if spacing_mm is not None:
                raise DatasetError("spacing_mm came with a file, which says its own; give it with an array only")
            return self.read(self._case(image))
        if spacing_mm is None or len(spacing_mm) != 3 or image.ndim not in (3, 4):
            raise DatasetError(
                f"an array with {image.ndim} axes and spacing_mm {spacing_mm}, expected (Z, Y, X) or (C, Z, Y, X) and "
                "three millimetres (Z, Y, X)"
            )
        image_CZYX = np.array(image if image.ndim == 4 else image[None], dtype=np.float32)
        return self.preprocess(image_CZYX, {"spacing": [float(value) for value in spacing_mm]})

    def _case(self, image: str | Path | Sequence[str | Path]) -> Case:
        """Find the files of all channels."""
        ending = self._model.dataset_json["file_ending"]
        files = [Path(image)] if isinstance(image, str | Path) else [Path(file) for file in image]
        first, channels = files[0], len(self._model.dataset_json["channel_names"])
        if len(files) == 1 and channels > 1 and channel_of(first, ending) is not None:
            stem = first.name.removesuffix(ending)[:-CHANNEL_SUFFIX_LENGTH]
            files = [first.with_name(f"{stem}_{channel:04d}{ending}") for channel in range(channels)]
        return Case(first.name.removesuffix(ending), tuple(files))

    def read(self, case: Case) -> Preprocessed:
        """Read and preprocess one case.

        Raises:
            DatasetError: If a file is damaged, or the case is not as the model wants it.
        """
        require_whole(case, accepted_checks(self._model.dataset_json))
        image, properties = self.reader_writer.read_images([str(file) for file in case.files])
        return self.preprocess(image, properties)

    def preprocess(self, image_CZYX: np.ndarray, properties: Mapping[str, Any]) -> Preprocessed:
        """Preprocess an image.

        Args:
            image_CZYX: Float32, a channel a file of the dataset.
            properties: Of nnU-Net's reader; "spacing" in mm (Z, Y, X) is enough.

        Returns:
            The preprocessed image (C, Z, Y, X), and the properties, completed by where it was cropped.

        Raises:
            DatasetError: If the number of channels is another one, or the image is not finite.
        """
        model = self._model
        expected = len(model.dataset_json["channel_names"])
        if len(image_CZYX) != expected:
            raise DatasetError(
                f"the files hold {len(image_CZYX)} channels, the model wants {expected}; leave the others out"
            )
        image, _, completed = self._preprocessor.run_case_npy(
            image_CZYX, None, dict(properties), model.plans, model.configuration, model.dataset_json
        )
        if not np.isfinite(image).all():
            raise DatasetError("the image has NaN or infinite voxels; replace them by the value of air")
        return as_tensor(image), completed
