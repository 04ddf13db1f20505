"""Collect additive statistics over a sample set: in shards of sites under a memory bound, resumable, deterministic."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from guidedq.artifacts.samples import SampleSet
from guidedq.files import write_tensors, write_text
from guidedq.ir.graph import Site, UseKind
from guidedq.ir.model import Model
from guidedq.progress import Progress

from .backward_pass import backward_pass, batch_size
from .events import Event
from .forward_pass import forward_pass
from .listening import recomputes
from .shards import shards_of
from .statistics import AbstractStatistics, accumulate, terms_of
from .store import StoredGuidance, gradient_files, write_site
from .unheard import complete

GRADIENT_BYTES = 2 * 2**30
"""Disk that sequence gradients may take when their number is left open: one byte per weight and sequence."""
ROWS_AT_ONCE = 2048
"""Rows of a weight gradient that are formed at once: a large vocabulary's would take as much memory as the head."""
PART_BYTES = 32_000_000
"""Of the sums that are saved at once."""
Recompute = Literal["auto", "always", "never"]
FEWEST_SEQUENCES = 16
MOST_SEQUENCES = 256


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """One run of a guide.

    Attributes:
        statistics: What is summed.
        sequences: Sequence gradients to keep; 0 lets their number follow from the model's size, -1 keeps none.
        checkpoint_seconds: How often an unfinished pass is saved.
        recompute: Run blocks again in the backward pass to save memory; `auto` for large models.
    """

    statistics: AbstractStatistics
    sequences: int
    checkpoint_seconds: float
    recompute: Recompute = "auto"

    def run(
        self, model: Model, samples: SampleSet, folder: Path, *, seed: int, memory_bytes: int | None, progress: Progress
    ) -> StoredGuidance:
        """Collect, or go on where an interrupted run of the same collection stopped."""
        folder.mkdir(parents=True, exist_ok=True)
        sites = model.graph.quantizable
        shards = shards_of(sites, memory_bytes)
        backward = self.statistics.needs_gradients() and model.program.differentiable
        kept = kept_sequences(self.sequences, sites, len(samples)) if backward else 0
        progress.start("guidance", len(shards) * len(samples))
        seconds = 0.0
        for number, shard in enumerate(shards):
            state = _ShardState(folder, number)
            if not state.finished():
                self._run_shard(model, samples, shard, state, kept, backward, seed, progress)
            else:
                progress.advance(len(samples))
            seconds += state.seconds()
        complete(model, samples, folder, gradients=backward, memory_bytes=memory_bytes, progress=progress)
        units = model.objective.units(samples)
        guidance = StoredGuidance(
            folder=folder,
            shapes={site.name: (site.rows, site.columns) for site in sites},
            sequences=kept,
            sequence_units=units / len(samples),
            numbers={
                "units": float(units),
                "samples": float(len(samples)),
                "passes": float(len(shards)),
                "forward_backward_seconds": seconds,
            },
        )
        guidance.save()
        return guidance

    def _run_shard(
        self,
        model: Model,
        samples: SampleSet,
        shard: Sequence[Site],
        state: _ShardState,
        kept: int,
        backward: bool,
        seed: int,
        progress: Progress,
    ) -> None:
        numbers = {site.name: index for index, site in enumerate(model.graph.quantizable)}
        sums, first, seconds = state.restore()
        progress.advance(first)
        saved = time.monotonic()
        size = batch_size(model, samples)
        while first < len(samples):
            batch = samples.part(first, first + size)
            wanted = range(first, min(first + len(batch), kept))

            def record(event: Event, wanted: range = wanted) -> None:
                accumulate(sums, self.statistics.sums(event), prefix=f"{event.use.operator}|")
                write_gradients(event, state.folder, numbers[event.site.name], kept, wanted)

            if backward:
                again = self.recomputes(model)
                seconds += backward_pass(model, batch, first, shard, record, seed=seed, recompute=again)
            else:
                seconds += forward_pass(model, batch, shard, record)
            first += len(batch)
            progress.advance(len(batch))
            if time.monotonic() - saved > self.checkpoint_seconds and first < len(samples):
                state.save(sums, first, seconds)
                saved = time.monotonic()
        units = model.objective.units(samples)
        for site in shard:
            if terms := terms_of(self.statistics, site, sums, units):
                write_site(state.folder, numbers[site.name], terms)
        state.save({}, len(samples), seconds)

    def recomputes(self, model: Model) -> bool:
        """Whether blocks are run again in the backward pass instead of keeping what they computed."""
        return self.recompute == "always" or (self.recompute == "auto" and recomputes(model))


def kept_sequences(asked: int, sites: Sequence[Site], samples: int) -> int:
    """How many sequence gradients are kept: as asked, or what fits the disk allowance, between 16 and 256."""
    if asked < 0:
        return 0
    affordable = GRADIENT_BYTES // max(1, sum(site.parameters for site in sites))
    return min(samples, asked or max(FEWEST_SEQUENCES, min(MOST_SEQUENCES, affordable)))


@final
@dataclass(frozen=True, slots=True)
class _ShardState:
    """The saved progress of one shard: a small file of facts names the folder where the sums lie, in parts.

    Safetensors copies all that it writes to one file, and the sums are large. The facts are replaced last, at once.
    """

    folder: Path
    number: int

    @property
    def path(self) -> Path:
        return self.folder / f"shard-{self.number:03d}.json"

    def save(self, sums: Mapping[str, Tensor], first: int, seconds: float) -> None:
        """Keep the sums after `first` samples; none when the shard is finished."""
        place = self.folder / f"shard-{self.number:03d}-{first:08d}"
        for index, part in enumerate(_parts(sums)):
            write_tensors(place / f"{index:04d}.safetensors", part)
        facts = {"first": first, "seconds": seconds, "finished": not sums, "place": place.name}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(facts))
        self._tidy(place.name)

    def restore(self) -> tuple[dict[str, Tensor], int, float]:
        """Sums, samples done, seconds spent in the model's own passes."""
        if not (facts := self._facts()):
            return {}, 0, 0.0
        self._tidy(facts["place"])
        files = sorted((self.folder / facts["place"]).glob("*.safetensors"))
        sums = {name: values for file in files for name, values in load_file(file).items()}
        return sums, facts["first"], facts["seconds"]

    def finished(self) -> bool:
        return bool(self._facts().get("finished"))

    def seconds(self) -> float:
        return self._facts()["seconds"]

    def _facts(self) -> dict[str, Any]:
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def _tidy(self, current: str) -> None:
        for place in self.folder.glob(f"shard-{self.number:03d}-*"):
            if place.name != current:
                shutil.rmtree(place)


def _parts(sums: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The sums in parts of limited size, each of at least one."""
    part: dict[str, Tensor] = {}
    held = 0
    for name, values in sums.items():
        if part and held + values.nbytes > PART_BYTES:
            yield part
            part, held = {}, 0
        part[name] = values
        held += values.nbytes
    if part:
        yield part


def write_gradients(event: Event, folder: Path, number: int, kept: int, wanted: range) -> None:
    """Write the weight gradients of the batch's first samples, `wanted` by their place in the set, block by block."""
    if not wanted:
        return
    assert event.gradients is not None
    site, use = event.site, event.site.uses.index(event.use)
    files = gradient_files(folder, number, len(site.uses), kept, (site.rows, site.columns))
    for index, sequence in enumerate(wanted):
        for start in range(0, site.rows, ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, site.rows)
            files.write(use, sequence, start, _rows_gradient(event, index, start, stop))


def _rows_gradient(event: Event, index: int, start: int, stop: int) -> Float[Tensor, "n in"]:
    assert event.gradients is not None
    site = event.site
    if index >= len(event.gradients):  # the batch shared one call, whose gradient went to its first sample
        return torch.zeros(stop - start, site.columns)
    gradients = event.gradients[index]
    if event.use.kind is UseKind.EMBEDDING:
        rows = event.rows_read[index]
        mine = (rows >= start) & (rows < stop)
        return torch.zeros(stop - start, site.columns).index_add_(0, rows[mine] - start, gradients[mine])
    if site.input_groups == 1:
        return gradients[:, start:stop].t() @ event.inputs[index, :, 0]
    split = gradients.unflatten(1, (site.input_groups, -1))
    return torch.einsum("tgo,tgi->goi", split, event.inputs[index]).flatten(0, 1)[start:stop]
