"""The interfaces of the compiler's stages: what each step takes and what it gives.

    Model --rewrite*--> Graph            Corpus --sample--> CalibrationSet --collect--> Guidance
    Guidance --measure--> SiteCurve...   --allocate(limit)--> Allocation --forecast--> Forecast
    Allocation --round, correct--> QuantizedWeight... --tune--> QuantizedWeight... --emit--> weights file

A stage is a frozen dataclass whose fields are its only options. `calibration/` collects, `passes/` decides, `backends/`
writes; the driver, `compiler.py`, knows nothing but this file. Stages are found by name through the entry points in
`pyproject.toml` (see `registry.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor

from guidedq.artifacts.activations import ActivationHistogram, ActivationPlace
from guidedq.artifacts.allocation import Allocation
from guidedq.artifacts.curves import SiteCurve
from guidedq.artifacts.emission import Emission
from guidedq.artifacts.footprint import Footprint
from guidedq.artifacts.forecast import Forecast, Probe
from guidedq.artifacts.guidance import AbstractGuidance, AbstractSequenceGradients, SiteGuidance
from guidedq.artifacts.nested_segment import NestedSegment
from guidedq.artifacts.quantized_weight import QuantizedWeight, RoundedSegment, Segment
from guidedq.artifacts.samples import CalibrationSet, SampleSet
from guidedq.errors import BackendError, RecipeError
from guidedq.ir.activation_rounding import ActivationRounding
from guidedq.ir.graph import Graph, Site
from guidedq.ir.model import Model
from guidedq.ir.program import Batch
from guidedq.progress import Progress
from guidedq.quant.formats import EntropyCode, RoundedFormat
from guidedq.quant.integer import REDUCED_CODE, IntegerGrid
from guidedq.quant.nested import NestedFormat
from guidedq.timer import AbstractTimer


class AbstractRewrite(ABC):
    """A pass over the graph: takes one, returns one, and checks what it promises."""

    @abstractmethod
    def rewrite(self, graph: Graph) -> Graph:
        """The rewritten graph; the one given stays as it is."""


class AbstractSampler(ABC):
    """Makes the calibration set."""

    @abstractmethod
    def sample(
        self, model: Model, data: Sequence[Path], evaluation_data: Sequence[Path], *, seed: int, progress: Progress
    ) -> CalibrationSet:
        """Draw three disjoint sample sets that fit the model's inputs.

        Args:
            model: What the samples are for.
            data: Files or folders to draw from; empty where the sampler makes its own.
            evaluation_data: Where the evaluation samples come from; a tenth of `data` is held back if empty.
            seed: Seeds the draw.
            progress: Told about samples made.

        Raises:
            CalibrationError: the data do not fit the model, or are too few; the message says what is needed.
        """


class AbstractGuide(ABC):
    """Measures which errors matter."""

    @abstractmethod
    def collect(
        self,
        model: Model,
        samples: SampleSet,
        folder: Path,
        *,
        seed: int,
        memory_bytes: int | None,
        progress: Progress,
    ) -> AbstractGuidance:
        """Run the model over the samples and leave the statistics of every quantizable site in `folder`.

        Called again on a folder that an interrupted run left, it goes on where that one stopped, with the same result
        to the bit.

        Args:
            model: What is to be quantized.
            samples: Calibration inputs.
            folder: Belongs to this call alone; may hold an interrupted run's progress.
            seed: Seeds the random signs and cotangents.
            memory_bytes: Bound on the statistics held at once; the sites are then done in several passes.
            progress: Told about samples done.

        Raises:
            CalibrationError: a statistic is not finite.
        """

    @abstractmethod
    def restore(self, folder: Path) -> AbstractGuidance:
        """Read the guidance that `collect` left in `folder`."""

    @abstractmethod
    def histograms(
        self, model: Model, samples: SampleSet, places: Sequence[ActivationPlace], *, seed: int, progress: Progress
    ) -> Sequence[ActivationHistogram]:
        """What values each of `places` has, and how the end loss answers to them if this guide takes gradients.

        Args:
            model: Its program must be a `TorchProgram`.
            samples: Calibration inputs.
            places: Activations that could be rounded.
            seed: Seeds the random signs and cotangents.
            progress: Told about samples done.

        Raises:
            CalibrationError: an activation is not finite.
        """


class AbstractCorrector(ABC):
    """Chooses what a weight is rounded to: itself, or what makes up for the sites rounded before it."""

    @abstractmethod
    def corrects(self, model: Model) -> bool:
        """Whether `rounded` would round anything but the weights themselves."""

    @abstractmethod
    def rounded(
        self, model: Model, samples: SampleSet, round_site: Callable[[Site, Tensor], QuantizedWeight]
    ) -> Iterator[QuantizedWeight]:
        """The quantized weights of all quantizable sites, in graph order.

        Args:
            model: The original.
            samples: Calibration inputs.
            round_site: Rounds one site to a matrix `[out, in]`; called once for each site, in any order.
        """


class AbstractRounder(ABC):
    """Chooses grids and codes for the rows of one weight."""

    @abstractmethod
    def round(
        self,
        matrix: Float[Tensor, "out in"],
        guidance: SiteGuidance,
        formats: Sequence[RoundedFormat],
        rows: Sequence[Int64[Tensor, "_"]] | None = None,
        *,
        seed: int,
    ) -> Iterator[RoundedSegment]:
        """Quantize rows in each format: a segment for each of `formats`, in their order.

        Rows do not depend on one another: rounding some of them gives the same codes as rounding all.

        Args:
            matrix: The whole weight.
            guidance: Of the whole weight.
            formats: What to round to.
            rows: For each format the rows that are rounded in it, ascending; all rows by default.
            seed: Seeds what is random.
        """

    def nested(self, matrix: Float[Tensor, "out in"], guidance: SiteGuidance, format: NestedFormat) -> NestedSegment:
        """Quantize a whole weight so that the top bits of its codes are a weight at each of the format's widths.

        Raises:
            RecipeError: this rounder does not know how.
        """
        raise RecipeError("only round=gptq chooses nested codes. Leave the rounder at its default with --nested.")


class AbstractTuner(ABC):
    """Changes the codes of a rounded model so that its output comes nearer to the original's."""

    @abstractmethod
    def tunes(self, model: Model) -> bool:
        """Whether `tune` would change anything."""

    @abstractmethod
    def tune(
        self,
        model: Model,
        samples: SampleSet,
        weights: tuple[QuantizedWeight, ...],
        *,
        room: Callable[[tuple[QuantizedWeight, ...]], int],
        seed: int,
        progress: Progress,
    ) -> tuple[QuantizedWeight, ...]:
        """The same weights with other codes, or the very ones given: formats, rows and grids stay as they are.

        Args:
            model: The original.
            samples: Calibration inputs.
            weights: All quantizable sites, rounded.
            room: Bytes that weights may still grow by, negative where they are too large: other codes may take more
                bytes where they are stored by their entropy.
            seed: Seeds the order of the samples.
            progress: Told about steps done.
        """


class AbstractRange(ABC):
    """Chooses the grid of an activation."""

    @abstractmethod
    def grid(self, histogram: ActivationHistogram) -> IntegerGrid:
        """A uint8 grid for values like those of `histogram`; what lies beyond its ends is clipped."""


class AbstractMeasurer(ABC):
    """Measures rate-distortion curves."""

    @abstractmethod
    def measure(
        self,
        site: Site,
        matrix: Float[Tensor, "out in"],
        guidance: SiteGuidance,
        gradients: AbstractSequenceGradients | None,
        footprint: Footprint,
        rounder: AbstractRounder,
        *,
        seed: int,
        keep: Callable[[RoundedSegment], None],
    ) -> SiteCurve:
        """Guided distortion and projections of every row of one site under every format of its footprint.

        Args:
            site: What is measured.
            matrix: Its weight.
            guidance: Which errors matter.
            gradients: For the projections, if there are any.
            footprint: Says which formats.
            rounder: Rounds to them.
            seed: For the rounder.
            keep: Told of all rows in each affine format, as soon as they are rounded.
        """

    @abstractmethod
    def weigh(
        self,
        name: str,
        matrix: Float[Tensor, "out in"],
        guidance: SiteGuidance,
        gradients: AbstractSequenceGradients | None,
        segments: Sequence[Segment],
    ) -> SiteCurve:
        """The same of a site's weight that is rounded already: all of its rows in one format after another."""


class AbstractAllocator(ABC):
    """Chooses a format for every row within a budget."""

    @abstractmethod
    def allocate(
        self, graph: Graph, curves: Mapping[str, SiteCurve], footprint: Footprint, limits: Sequence[int]
    ) -> tuple[Allocation, ...]:
        """For each of the limits, in bytes, the allocation of least distortion that this rule finds within it.

        Deterministic, never over the limit, never worse than the best uniform format that fits, and its distortion
        never rises with the limit. Fused groups of `graph` get one format.

        Raises:
            BudgetError: even the smallest allocation is larger than a limit.
        """


class AbstractForecaster(ABC):
    """Predicts the loss of an allocation."""

    @abstractmethod
    def raw(
        self, allocations: Sequence[Allocation], curves: Iterable[SiteCurve], units_per_sequence: float
    ) -> tuple[tuple[float, ...], ...]:
        """For each allocation the uncalibrated divergence of each kept sequence, loss per unit.

        A single number where there are no sequences. The curves are gone through once.
        """

    @abstractmethod
    def forecast(self, raw: Sequence[float], probes: Sequence[Probe], evaluation_units: int, *, seed: int) -> Forecast:
        """The calibrated forecast of an allocation whose raw prediction is `raw`."""


class AbstractBackend(ABC):
    """Writes an artifact and runs it."""

    def timer(self, model: Model | None = None) -> AbstractTimer:
        """What tells how long sites take, of this model or any; by default there is none.

        Raises:
            BackendError: this backend, or this model, cannot be timed.
        """
        raise BackendError("the time of a model is known for ONNX files alone: pass --backend onnx.")

    def entropy_code(self, model: Model, *, asked: bool) -> EntropyCode | None:
        """How it stores codes by their entropy.

        Args:
            model: What is to be stored.
            asked: The user wants it, even where it does not pay.

        Returns:
            `None` if it cannot, or does not by default because the price at run time is high.
        """
        return None

    @abstractmethod
    def footprint(self, model: Model, formats: Sequence[RoundedFormat]) -> Footprint:
        """What this backend can hold of `formats`, site by site, and for how many bytes; before any calibration.

        Every quantizable site also gets a float format, the one it would be left in.

        Raises:
            BackendError: this backend cannot hold such a model at all; the message says which can.
        """

    def nested_footprint(self, model: Model, format: NestedFormat) -> Footprint:
        """Bytes of the file with every site nested, or in a float format where its scales could not be stored.

        Raises:
            BackendError: this backend holds no nested weights, or not such a model.
        """
        raise BackendError("only the torch backend writes nested weights. Pass --backend torch, or leave --nested out.")

    @abstractmethod
    def fuses(self, graph: Graph) -> Sequence[Sequence[str]]:
        """Groups of sites that the runtime fuses and that must therefore share one format."""

    @abstractmethod
    def own_rounding(self, model: Model, formats: Sequence[RoundedFormat]) -> ActivationRounding | None:
        """The rounding of activations that the runtime does on its own account, `None` if it does none.

        Args:
            model: What is compiled.
            formats: The candidates for its weights.
        """

    def places(self, model: Model) -> Sequence[ActivationPlace]:
        """The activations that it could round to uint8, so that sites are computed in integers; none by default.

        Raises:
            BackendError: it was asked to, and this model has none.
        """
        return ()

    def largest_code(self) -> int:
        """Of the int8 weights of sites that are computed in integers: codes are from its negative to this."""
        return REDUCED_CODE

    @abstractmethod
    def emit(
        self,
        model: Model,
        weights: Iterable[QuantizedWeight],
        folder: Path,
        activations: ActivationRounding | None = None,
    ) -> Emission:
        """Write the artifact into `folder`, an existing empty folder that becomes the user's.

        Takes the weights one by one; none is held longer than it needs. Same inputs, same bytes.

        Args:
            model: The original.
            weights: Every quantizable site, rounded.
            folder: Where to.
            activations: Which of `places` are rounded and which sites computed in integers, besides what the runtime
                does on its own account.
        """

    @abstractmethod
    def open(self, model: Model, folder: Path, *, precision: int | None = None) -> Callable[[Batch], Tensor]:
        """Load what `emit` wrote, with the runtime that users will use, as a function from inputs to the output.

        Args:
            model: The original.
            folder: What `emit` wrote.
            precision: At how many bits a nested artifact is read; its widest by default.
        """

    @abstractmethod
    def load(self, folder: Path) -> Any:
        """Load what `emit` wrote as the runtime's own object: a torch module, an ONNX Runtime session.

        Raises:
            ArtifactError: a file is missing, truncated, altered or from a newer version.
        """
