"""Every error that guidedq raises on purpose, in one tree.

A message says what, where, what was expected, what was found and what to do; it names the site where there is one.
"""


class GuidedQError(Exception):
    """What a caller can catch to catch all of guidedq's own errors."""


class ModelError(GuidedQError):
    """A model cannot be loaded, or has nothing that can be quantized."""


class UnsupportedOperatorError(ModelError):
    """A graph holds an operator that guidedq cannot run in torch."""


class SampleAxisError(ModelError):
    """An output has no axis of samples where it must have one.

    Attributes:
        output: Its name.
    """

    def __init__(self, output: str, message: str) -> None:
        """Say which output, and what it is."""
        super().__init__(message)
        self.output = output


class CalibrationError(GuidedQError):
    """Calibration data are unusable, or the statistics taken from them are."""


class BudgetError(GuidedQError):
    """A budget cannot be read, or cannot be met."""


class FormatError(GuidedQError):
    """A number format is malformed, or does not fit the weight it is asked to hold."""


class BackendError(GuidedQError):
    """A backend cannot hold this model, or the runtime refused what was written."""


class ArtifactError(GuidedQError):
    """A file that guidedq wrote, or claims to have written, is damaged, foreign or too new."""


class OutputError(GuidedQError):
    """The output cannot be written where it was asked for."""


class RecipeError(GuidedQError):
    """A recipe, a stage's text or an option is malformed or unknown."""


class PolicyError(GuidedQError):
    """A policy cannot be read, or asks for what there is not."""


class ProfileError(GuidedQError):
    """A profile of a machine cannot be read, made, or does not fit what is asked of it."""


class GateError(GuidedQError):
    """A gate that the user set was missed: the forecast or the measurement exceeds it."""


class LawError(GuidedQError):
    """Measurements do not tell the law that is asked for, or it is asked where it says nothing."""


class ScheduleError(GuidedQError):
    """A schedule of precisions is malformed, or asks for what the model or the data do not have."""
