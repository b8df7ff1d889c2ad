"""The errors that a user can cause; each message says where, what was expected, what came and what to do."""


class Sam3dError(Exception):
    """Base of all errors that a user can cause; the commands print its message alone and exit with its status."""

    exit_status = 2


class DatasetError(Sam3dError):
    """A dataset, image, label or folder is not as nnU-Net's raw format wants it."""


class PlanError(Sam3dError):
    """A plan is missing, unreadable, or cannot be made or followed."""


class CheckpointError(Sam3dError):
    """A checkpoint or a file of pretrained weights is missing, damaged or foreign."""


class PromptError(Sam3dError):
    """A prompt does not fit its image or the model."""


class FailedCasesError(Sam3dError):
    """Some cases failed, each alone; what could be done with the others is done."""

    exit_status = 1
