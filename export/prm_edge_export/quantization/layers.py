"""Run transformers' own layers one at a time over many records, so that one is in memory.

In: a decoder's config, head and lazily read tensors, and encoded records. Out: what each layer
reads and gives, and the reference's outputs. Between two layers the hidden states lie on disk, in a
file without a name. B rows, T tokens, H hidden size, N reads, W outputs: C logits, then K kinds.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from prm_edge_runtime.encoding import Encoded
from prm_edge_runtime.errors import ProofError

from ..checkpoint import Tensors
from ..heads import EMBEDDING, Head
from ..model_config import DecoderConfig
from ..reference import load_layer_model, load_tops
from .kinds import layer_prefix

BATCH_TOKENS: Final = 1024

Hook = Callable[[torch.Tensor], torch.Tensor | None]
Turn = Callable[[torch.Tensor], torch.Tensor]


class States:
    """Hidden states on disk, gone when nobody holds them any more, however the process ends."""

    def __init__(self, folder: Path) -> None:
        self._file = TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115
        weakref.finalize(self, self._file.close)

    def get(self, offset: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Read states from a byte offset on."""
        self._file.seek(offset)
        count = math.prod(shape)
        return torch.from_numpy(np.fromfile(self._file, np.float32, count).reshape(shape))

    def put(self, offset: int, states: torch.Tensor) -> None:
        """Write them there."""
        self._file.seek(offset)
        states.numpy().tofile(self._file)


@dataclass(slots=True, kw_only=True, eq=False)
class Batch:
    """Records of about the same length, padded on the right, where no token is looked at.

    ``stream`` (B, T, H) moves on from layer to layer, on disk from ``offset`` on; ``valid`` (B, T)
    says where tokens are.
    """

    records: tuple[int, ...]
    valid: torch.Tensor
    states: States
    offset: int
    hidden: int

    @property
    def stream(self) -> torch.Tensor:
        """What the next layer reads."""
        return self.states.get(self.offset, (*self.valid.shape, self.hidden))

    @stream.setter
    def stream(self, states: torch.Tensor) -> None:
        self.states.put(self.offset, states)

    @property
    def rows(self) -> torch.Tensor:
        """The stream at every token. -> (tokens, H)"""
        return self.stream[self.valid]


class LayerRunner:
    """The reference, one layer at a time. ``scratch``: a folder on a disk with room.

    ``opening`` (P,): tokens that every record begins with; streams are of those after them, and
    find their keys and values in a cache. ``beside``: a runner that never needs its layer at the
    same time, so that one layer is in memory and not two.
    """

    def __init__(
        self,
        config: DecoderConfig,
        head: Head,
        tensors: Tensors,
        opening: NDArray[np.int64] | None = None,
        *,
        scratch: Path,
        beside: LayerRunner | None = None,
    ) -> None:
        self._opening = np.zeros(0, dtype=np.int64) if opening is None else opening
        self._first: torch.Tensor | None = None  # the opening's stream (1, P, H), before the layer
        self._next: torch.Tensor | None = None  # and after it
        self._kv: tuple[torch.Tensor, torch.Tensor] | None = None
        self._config = config
        self._head = head
        self._tensors = tensors
        self._scratch = scratch
        # a model of one layer, for layers with a sliding window and for those without; its norm
        self._models: dict[bool, tuple[Any, Any]] = {} if beside is None else beside._models
        self._model, self._norm = self._of_kind(0)

    def _of_kind(self, index: int) -> tuple[Any, Any]:
        full = index in self._config.full_layers
        if full not in self._models:
            single = replace(self._config, full_layers=(0,) if full else ())
            model = load_layer_model(single, self._head)
            self._models[full] = model, model.norm
            model.norm = torch.nn.Identity()  # the stream goes on as it is
        return self._models[full]

    @property
    def layer(self) -> Any:
        """The module, which holds the layer of the last :meth:`load`."""
        return self._model.layers[0]

    def load(self, index: int) -> None:
        """Fill the module with a layer of the checkpoint.

        Raises:
            CheckpointError: when a tensor is missing, has another shape or is not finite.
        """
        self._model, _ = self._of_kind(index)
        with torch.no_grad():
            for name, parameter in self.layer.named_parameters():
                stored = self._tensors.torch(layer_prefix(index) + name, tuple(parameter.shape))
                parameter.copy_(stored)
        if len(self._opening):
            self._first = self._embedded(self._opening[None]) if index == 0 else self._next
            self.settle()

    def settle(self) -> None:
        """Run the opening through the loaded layer again, whose weights may have changed."""
        from transformers import DynamicCache

        if self._first is None:
            return
        cache: Any = DynamicCache()
        out = self._model(inputs_embeds=self._first, past_key_values=cache, use_cache=True)
        self._kv = cache.layers[0].keys, cache.layers[0].values
        self._next = out.last_hidden_state

    def take_opening(self, other: LayerRunner, turn: Turn) -> None:
        """Let the next :meth:`load` find the opening where ``other`` has it, in another basis."""
        if other._first is not None:
            self._next = turn(other._first)

    def opening_kv(self) -> NDArray[np.float32]:
        """The opening's keys and values in the loaded layer. -> (2, G, P, D)"""
        if self._kv is None:
            shape = (2, self._config.kv_heads, 0, self._config.head_dim)
            return np.zeros(shape, dtype=np.float32)
        return torch.cat(self._kv).numpy()

    def _embedded(self, ids: NDArray[np.int64]) -> torch.Tensor:
        """(B, T) -> (B, T, H); only the rows of these tokens are read."""
        tokens, places = np.unique(ids, return_inverse=True)
        rows = self._tensors.rows(EMBEDDING, tuple(tokens.tolist()), self._config.hidden)
        rows *= torch.tensor(self._config.embedding_scale)
        return rows[torch.from_numpy(places.reshape(ids.shape))]

    def batches(self, records: Sequence[Encoded]) -> list[Batch]:
        """Embed records, those of similar length together."""
        states, offset = States(self._scratch), 0
        skipped = len(self._opening)
        lengths = [len(record.ids) - skipped for record in records]
        batches, taken = [], 0
        order = sorted(range(len(records)), key=lambda index: lengths[index])
        while taken < len(order):
            count = 1
            while (
                taken + count < len(order)
                and (count + 1) * lengths[order[taken + count]] <= BATCH_TOKENS
            ):
                count += 1
            chosen = tuple(order[taken : taken + count])
            taken += count
            ids = torch.zeros(len(chosen), lengths[chosen[-1]], dtype=torch.int64)
            valid = torch.zeros_like(ids, dtype=torch.bool)
            for row, index in enumerate(chosen):
                ids[row, : lengths[index]] = torch.from_numpy(records[index].ids[skipped:])
                valid[row, : lengths[index]] = True
            batch = Batch(
                records=chosen,
                valid=valid,
                states=states,
                offset=offset,
                hidden=self._config.hidden,
            )
            batch.stream = self._embedded(ids.numpy())
            offset += 4 * ids.numel() * self._config.hidden
            batches.append(batch)
        return batches

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        """Run the loaded layer. (B, T, H) -> (B, T, H)"""
        past: Any = None
        if self._kv is not None:
            from transformers import DynamicCache

            past = DynamicCache()
            past.update(*(part.expand(len(stream), -1, -1, -1) for part in self._kv), 0)
        out: torch.Tensor = self._model(
            inputs_embeds=stream, past_key_values=past, use_cache=past is not None
        ).last_hidden_state
        return out

    def outputs(self, batches: Sequence[Batch], records: Sequence[Encoded]) -> list[Any]:
        """Final norm and heads at the read positions of streams that passed every layer.

        -> for each record (N, W), logits first
        """
        found: list[NDArray[np.float32] | None] = [None] * len(records)
        shape = (self._config.hidden,)
        with torch.no_grad():
            self._norm.weight.copy_(self._tensors.torch("model.norm.weight", shape))
        tops = [top.eval() for top in load_tops(self._head, self._tensors)]
        for batch in batches:
            stream = batch.stream
            for row, index in enumerate(batch.records):
                reads = torch.from_numpy(records[index].reads - len(self._opening))
                normed = self._norm(stream[row, reads])
                found[index] = torch.cat([top(normed) for top in tops], dim=-1).numpy()
        return found


class StoredReference:
    """Outputs that the reference gave while its layers were in memory."""

    def __init__(self, records: Sequence[Encoded], outputs: Sequence[NDArray[np.float32]]) -> None:
        self._outputs = {
            (r.ids.tobytes(), r.reads.tobytes()): found
            for r, found in zip(records, outputs, strict=True)
        }

    def run(self, ids: NDArray[np.int64], reads: NDArray[np.int64]) -> NDArray[np.float32]:
        """The outputs of a record it was made with. (T,), (N,) -> (N, W)"""
        try:
            return self._outputs[ids.tobytes(), reads.tobytes()]
        except KeyError:
            raise ProofError(
                f"the reference was not run on this record of {len(ids)} tokens; please report this"
            ) from None


@torch.inference_mode()
def run_reference(
    runner: LayerRunner,
    layers: int,
    records: Sequence[Encoded],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> StoredReference:
    """Pass records through every layer.

    Raises:
        CheckpointError: when a tensor is missing, has another shape or is not finite.
    """
    batches = runner.batches(records)
    for index in range(layers):
        runner.load(index)
        for batch in batches:
            batch.stream = runner.forward(batch.stream)
        progress(index + 1, layers)
    return StoredReference(records, runner.outputs(batches, records))


@contextmanager
def hooked(layer: Any, hooks: dict[str, Hook]) -> Iterator[None]:
    """Let functions see, and perhaps replace, what modules of a layer read."""

    def before(hook: Hook) -> Any:
        def call(module: Any, inputs: tuple[torch.Tensor, ...]) -> Any:
            changed = hook(inputs[0])
            return None if changed is None else (changed, *inputs[1:])

        return call

    handles = [
        layer.get_submodule(name).register_forward_pre_hook(before(hook))
        for name, hook in hooks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replayed(layer: Any, given: Mapping[str, Sequence[Any]]) -> Iterator[None]:
    """Let modules of a layer give, call after call, what they are said to, without any work."""
    modules = {layer.get_submodule(name): iter(outputs) for name, outputs in given.items()}
    for module, outputs in modules.items():
        module.forward = lambda *inputs, outputs=outputs, **named: next(outputs)
    try:
        yield
    finally:
        for module in modules:
            del module.forward
