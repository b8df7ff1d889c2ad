"""From the files of an image, or an array, to the preprocessed image that the network sees, as in training."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sam3dnet.errors import DatasetError
from sam3dnet.inference.cases import Case, accepted_checks, require_whole
from sam3dnet.inference.export import as_tensor
from sam3dnet.inference.models import LoadedModel
from sam3dnet.inference.reading import Preprocessed


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
