"""One case with prompts: read, segmented automatically, then corrected as often as the prompts change."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sam3dnet.errors import PromptError
from sam3dnet.inference.automatic import AutomaticSegmentation
from sam3dnet.inference.companions import LabelMaps
from sam3dnet.inference.images import Preprocessed
from sam3dnet.inference.models import LoadedModel, networks_of_folds
from sam3dnet.interactive.classes import prompt_classes
from sam3dnet.interactive.conversation import Act, Conversation, together
from sam3dnet.interactive.feature_cache import FeatureCache
from sam3dnet.interactive.label_map import PromptedExport, TakeLogits
from sam3dnet.interactive.objects import only_named_objects, without_unnamed_objects
from sam3dnet.interactive.taken_out import TakenOut
from sam3dnet.interactive.volume import Promptable, PromptedVolume


def promptable_networks(model: LoadedModel) -> list[Any]:
    """Give a network for each fold, so that they can be asked in turn; what all folds have alike is in memory once.

    Raises:
        PromptError: If the model was planned without prompts, or is not ours.
    """
    if not getattr(model.network, "answers_prompts", False):
        raise PromptError(
            f"the model {model.checkpoint_files[0].parent.parent} does not answer prompts; plan and train again with "
            "sam3d_plan_and_preprocess and sam3d_train, without --no-prompts"
        )
    if len(model.weights) == 1:
        return [model.network]
    return networks_of_folds(model.network, model.weights, model.names_that_differ)


class PromptedCase:
    """The label map of an image under any prompts; what was answered before is kept.

    Args:
        model: The model.
        networks: From `promptable_networks`.
        case: The preprocessed image, and what nnU-Net's preprocessor says about it.
        step_size: Step between windows as a share of the window.
        mirror: Whether the automatic segmentation is averaged over mirrored windows.
        instance: Whether all that no prompt names becomes background.
        cache: Keeps the features of the image's windows; of this case alone.
        on_progress: Called with the share that is done of the automatic segmentation.

    Raises:
        Sam3dError: If the network's output is not finite.
    """

    def __init__(
        self,
        model: LoadedModel,
        networks: Sequence[Promptable],
        case: Preprocessed,
        *,
        step_size: float = 0.5,
        mirror: bool = True,
        instance: bool = False,
        cache: FeatureCache | None = None,
        on_progress: Callable[[float], None] | None = None,
    ):
        image, properties = case
        automatic = AutomaticSegmentation(model, step_size=step_size, mirror=mirror)
        logits = automatic.room_for_logits(image)
        labels = automatic.label_map(image, properties, on_progress, keep=logits)
        self._volume = volume = PromptedVolume(
            networks,
            image,
            logits,
            model.configuration.patch_size,
            regions=model.labels.has_regions,
            spacing_mm=model.configuration.spacing,
            step_size=step_size,
            device=model.device,
            precision=model.precision,
            cache=cache,
        )
        self._export = export = PromptedExport(
            logits, labels, properties, model.plans, model.configuration, model.labels
        )
        self._classes = {one.index: one for one in prompt_classes(model.labels).values()}
        exclusive = not model.labels.has_regions
        self._conversation = Conversation(labels, volume.correction, export.label_map, self._classes, exclusive)
        self._instance = instance
        self._taken_out = TakenOut.by(model.postprocessing, labels, properties["spacing"], self._classes)

    def label_map(self, acts: Sequence[Act]) -> np.ndarray:
        """Segment under prompts.

        Args:
            acts: What is said, one thing after the other; acts that were given before are known by their identity.

        Returns:
            Labels on the grid of the image as its reader gave it, not to be changed; without prompts those of
            `sam3d_predict`. What post-processing takes out there is taken out here, but for objects that prompts name.
            Only named objects are left of what is wanted so; clicks are still judged by the others.
        """
        return self.label_maps(acts)[0]

    def label_maps(self, acts: Sequence[Act]) -> LabelMaps:
        """Segment under prompts, as `label_map`; give before it what the network says, before anything is taken out."""
        said = {
            number: together(*(act[number].on_image for act in acts if number in act))
            for number in {number for act in acts for number in act}
        }
        before_ZYX = self._conversation.after(acts)
        labels_ZYX = self._taken_out.without(before_ZYX, said)
        numbers = {number for act in acts for number, placed in act.items() if placed.instance}
        if self._instance:
            labels_ZYX = only_named_objects(labels_ZYX, said, self._classes)
        elif numbers:
            labels_ZYX = without_unnamed_objects(labels_ZYX, said, self._classes, numbers)
        return labels_ZYX, before_ZYX

    def look_ahead(self) -> bool:
        """Prepare for prompts in one more window; see `PromptedVolume.look_ahead`."""
        return self._volume.look_ahead()

    def give_logits(self, take: TakeLogits) -> None:
        """Give the logits under all that was said last, corrected, on the image's grid; see `PromptedExport`."""
        self._export.give_logits(self._conversation.corrections, take)
