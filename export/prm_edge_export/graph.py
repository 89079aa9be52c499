"""Build the ``decoder`` graph of the contract straight from config and weights, in float32.

No tracing and no model code: the graph is written node by node from the normalised config, one
tensor in memory at a time. Axes: B rows, S new tokens, H hidden, N read positions, C logits, K
kinds of error.
Operators: onnx opset 17 and com.microsoft 1, all of which onnxruntime 1.23 and newer have.

::

    input_ids (B,S) -> Gather(embedding) -> x (B,S,H)
    per layer   x -> norm -> qkv -> GroupQueryAttention(+rotary, +cache) -> o -> + -> x
                x -> norm -> gate, up -> silu(gate) * up -> down -> + -> x
    x -> Gather(reads) (N,H) -> norm -+-> head -> logits (N,C)
                                      +-> a head that names errors, if any -> error_kinds (N,K)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from prm_edge_runtime import contract
from prm_edge_runtime.version import __version__

from .checkpoint import Tensors
from .heads import EMBEDDING, Head, Layer
from .model_config import DecoderConfig
from .rope import cos_sin, inverse_frequencies
from .weights import WeightFile

OPSET: Final = 17
IR_VERSION: Final = 10  # what onnxruntime 1.23 reads, and every newer one
MICROSOFT: Final = "com.microsoft"
GRAPH_NAME: Final = "model.onnx"
DATA_NAME: Final = "model.onnx.data"

Weight = Callable[[], NDArray[np.float32]]  # (outputs, inputs), read when it is needed

_ELEMENT_TYPES: Final = {
    contract.BFLOAT16: TensorProto.BFLOAT16,
    contract.FLOAT: TensorProto.FLOAT,
    contract.FLOAT16: TensorProto.FLOAT16,
    contract.INT64: TensorProto.INT64,
    contract.INT32: TensorProto.INT32,
}


def build_decoder(
    config: DecoderConfig,
    head: Head,
    tensors: Tensors,
    folder: Path,
    *,
    max_tokens: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write ``model.onnx`` and ``model.onnx.data`` into ``folder``.

    Raises:
        CheckpointError: when a tensor is missing or has another shape than the config implies.
    """
    with WeightFile(folder / DATA_NAME) as weights:
        builder = DecoderBuilder(config, tensors, weights)
        builder.build(head, max_tokens, progress)
        model = builder.model(head)
    (folder / GRAPH_NAME).write_bytes(model.SerializeToString(deterministic=True))


class DecoderBuilder:
    """Collects nodes and initializers; every method returns the name of the value it makes."""

    def __init__(self, config: DecoderConfig, tensors: Tensors, weights: WeightFile) -> None:
        self.config = config
        self.tensors = tensors
        self.weights = weights
        self.nodes: list[Any] = []
        self.initializers: list[TensorProto] = []
        self.shapes: list[Any] = []  # of values whose shape is not inferred

    def node(
        self, op: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any
    ) -> str:
        self.nodes.append(
            helper.make_node(op, inputs, outputs, name=outputs[0], domain=domain, **attributes)
        )
        return outputs[0]

    def constant(self, name: str, array: NDArray[Any]) -> str:
        self.initializers.append(self.weights.add(name, array))
        return name

    def rows(
        self, name: str, shape: tuple[int, ...], dtype: Any, blocks: Iterable[NDArray[Any]]
    ) -> str:
        self.initializers.append(self.weights.add_blocks(name, shape, np.dtype(dtype), blocks))
        return name

    def read(self, name: str, *shape: int) -> NDArray[np.float32]:
        return self.tensors.numpy(name, shape)

    def build(self, head: Head, max_tokens: int, progress: Callable[[int, int], None]) -> None:
        config = self.config
        self._rotary_tables(max_tokens)
        stream = self._embed()
        update = ""  # what the previous block adds to the residual stream
        for layer in range(config.layers):
            stream, update = self._layer(layer, stream, update)
            progress(layer + 1, config.layers)
        stream = self._last(stream, update)
        normed, _ = self._norm("final_norm", "model.norm.weight", self._picked(stream), "")
        self._head(head, normed)

    def _embed(self) -> str:
        """(B, S) -> (B, S, H)"""
        shape = (self.config.vocab, self.config.hidden)
        scale = np.float32(self.config.embedding_scale)
        blocks = self.tensors.row_blocks(EMBEDDING, shape)
        table = self.rows("embedding", shape, np.float32, (block * scale for block in blocks))
        return self.node("Gather", [table, contract.INPUT_IDS.name], ["embedded"], axis=0)

    def _rotary_tables(self, max_tokens: int) -> None:
        inverse, attention = inverse_frequencies(
            self.config.rope, self.config.head_dim, self.config.max_positions
        )
        # one dummy token may follow the last real one, see engine.TILE
        cos, sin = cos_sin(inverse, attention, max_tokens + 1)
        self.constant("cos", cos)
        self.constant("sin", sin)

    def _norm(self, name: str, tensor: str, stream: str, update: str) -> tuple[str, str]:
        """RMS norm of stream + update. -> (normalised, the sum)

        ::

            stream --+
                     + ---> sum ---> norm
            update --+
        """
        gain = self._gain(name, tensor, self.config.hidden)
        if not update:
            return self._rms_norm(name, stream, gain), stream
        total = f"{name}.sum"
        normed = self.node(
            "SkipSimplifiedLayerNormalization",
            [stream, update, gain],
            [name, "", "", total],
            MICROSOFT,
            epsilon=self.config.eps,
        )
        return normed, total

    def _gain(self, name: str, tensor: str, width: int) -> str:
        gain = self.read(tensor, width)
        return self.constant(f"{name}.gain", gain + np.float32(1) if self.config.gemma else gain)

    def _rms_norm(self, name: str, source: str, gain: str) -> str:
        return self.node(
            "SimplifiedLayerNormalization",
            [source, gain],
            [name],
            axis=-1,
            epsilon=self.config.eps,
            stash_type=1,
        )

    def _linear(self, name: str, source: str, weight: Weight, bias: Any = None) -> str:
        # checkpoints store (out, in); MatMul wants (in, out)
        kernel = self.constant(f"{name}.weight", weight().T)
        out = self.node("MatMul", [source, kernel], [name])
        if bias is None:
            return out
        return self.node("Add", [out, self.constant(f"{name}.bias", bias)], [f"{name}.biased"])

    def _projection(
        self, prefix: str, part: str, source: str, sizes: tuple[int, int], has_bias: bool
    ) -> str:
        outputs, inputs = sizes
        name = f"{prefix}.{part}_proj"
        bias = self.read(f"{name}.bias", outputs) if has_bias else None
        return self._linear(
            name, source, lambda: self.read(f"{name}.weight", outputs, inputs), bias
        )

    def _layer(self, index: int, stream: str, update: str) -> tuple[str, str]:
        config = self.config
        prefix = f"model.layers.{index}"
        normed, stream = self._norm(
            f"layer.{index}.attention_norm", f"{prefix}.input_layernorm.weight", stream, update
        )
        attended = self._attention(index, f"{prefix}.self_attn", normed)
        update = self._projection(
            f"{prefix}.self_attn",
            "o",
            attended,
            (config.hidden, config.heads * config.head_dim),
            config.o_bias,
        )
        before_mlp = "post_attention_layernorm"
        if config.gemma:
            before_mlp = "pre_feedforward_layernorm"
            update = self._after(f"{prefix}.post_attention_layernorm", update)
        normed, stream = self._norm(
            f"layer.{index}.mlp_norm", f"{prefix}.{before_mlp}.weight", stream, update
        )
        update = self._mlp(f"{prefix}.mlp", normed)
        if config.gemma:
            update = self._after(f"{prefix}.post_feedforward_layernorm", update)
        return stream, update

    def _after(self, name: str, update: str) -> str:
        """Gemma's norm of what a block adds to the residual stream."""
        return self._norm(name, f"{name}.weight", update, "")[0]

    def _attention(self, index: int, prefix: str, source: str) -> str:
        """Packed q, k, v in one product; rotary embedding and cache inside the operator.

        ::

            source -> MatMul(+bias) (B,S,(heads+2G)D) -> GroupQueryAttention -> (B,S,heads*D)
                                     past.key, past.value --^        v--> present.key, present.value

        A window counts the token itself, in the operator as in transformers.
        """
        config = self.config
        q_out, kv_out = config.heads * config.head_dim, config.kv_heads * config.head_dim
        sizes = {"q": q_out, "k": kv_out, "v": kv_out}

        def weight() -> NDArray[np.float32]:
            if config.fused:
                return self.read(f"{prefix}.qkv_proj.weight", config.qkv_width, config.hidden)
            return np.concatenate(
                [self.read(f"{prefix}.{p}_proj.weight", n, config.hidden) for p, n in sizes.items()]
            )

        bias = None
        if config.qkv_bias:
            bias = np.concatenate(
                [self.read(f"{prefix}.{p}_proj.bias", n) for p, n in sizes.items()]
            )
        packed = self._linear(f"{prefix}.qkv_proj", source, weight, bias)
        split = self._normed_heads(prefix, packed) if config.qk_norm else [packed, "", ""]
        cache = [contract.past_name(index, "key"), contract.past_name(index, "value")]
        width, softcap = config.layer_window(index), config.softcap
        window: dict[str, int | float] = {} if width is None else {"local_window_size": width}
        if softcap is not None:
            window["softcap"] = softcap
        return self.node(
            "GroupQueryAttention",
            [
                *split,
                *cache,
                *(contract.LAST_TOKEN.name, contract.TOTAL_TOKENS.name, "cos", "sin"),
            ],
            [
                f"layer.{index}.attention",
                contract.present_name(index, "key"),
                contract.present_name(index, "value"),
            ],
            MICROSOFT,
            num_heads=config.heads,
            kv_num_heads=config.kv_heads,
            do_rotary=1,
            rotary_interleaved=0,
            scale=config.attention_scale,
            **window,
        )

    def _normed_heads(self, prefix: str, packed: str) -> list[str]:
        """RMS norm over each head of q and k. -> q (B,S,heads*D), k and v (B,S,G*D)

        The operator's own inputs for these gains are not implemented on the CPU. ::

            packed -> Split -+-> q -> (B,S,heads,D) -> norm -> (B,S,heads*D)
                             +-> k -> (B,S,G,D) -----> norm -> (B,S,G*D)
                             +-> v
        """
        config = self.config
        counts = {"q": config.heads, "k": config.kv_heads, "v": config.kv_heads}
        widths = np.array([n * config.head_dim for n in counts.values()], dtype=np.int64)
        sizes = self.constant(f"{prefix}.widths", widths)
        parts = [f"{prefix}.{part}" for part in counts]
        self.node("Split", [packed, sizes], parts, axis=-1)
        for at, part in enumerate("qk"):
            name = f"{prefix}.{part}_norm"
            # 0 copies the axis of the input
            apart = np.array([0, 0, counts[part], config.head_dim], dtype=np.int64)
            together = np.array([0, 0, widths[at]], dtype=np.int64)
            heads = self.node(
                "Reshape", [parts[at], self.constant(f"{name}.apart", apart)], [f"{name}.heads"]
            )
            gain = self._gain(name, f"{name}.weight", config.head_dim)
            normed = self._rms_norm(name, heads, gain)
            parts[at] = self.node(
                "Reshape", [normed, self.constant(f"{name}.together", together)], [f"{name}.out"]
            )
        return parts

    def _mlp(self, prefix: str, source: str) -> str:
        """silu(gate) * up, then down; QuickGelu with alpha 1 is silu. Gemma has gelu for silu.

        ::

            source -+-> gate -> silu -+
                    |                 * -> down
                    +-> up -----------+
        """
        wide, narrow = self.config.intermediate, self.config.hidden
        bias = self.config.mlp_bias
        if self.config.fused:
            both = self.read(f"{prefix}.gate_up_proj.weight", 2 * wide, narrow)
            gate = self._linear(f"{prefix}.gate_proj", source, lambda: both[:wide])
            up = self._linear(f"{prefix}.up_proj", source, lambda: both[wide:])
        else:
            gate = self._projection(prefix, "gate", source, (wide, narrow), bias)
            up = self._projection(prefix, "up", source, (wide, narrow), bias)
        if self.config.gemma:
            active = self.node("FastGelu", [gate], [f"{prefix}.active"], MICROSOFT)
        else:
            active = self.node("QuickGelu", [gate], [f"{prefix}.active"], MICROSOFT, alpha=1.0)
        product = self.node("Mul", [active, up], [f"{prefix}.product"])
        return self._projection(prefix, "down", product, (narrow, wide), bias)

    def _last(self, stream: str, update: str) -> str:
        """The residual stream after the last block."""
        return self.node("Add", [stream, update], ["stream"])

    def _picked(self, stream: str) -> str:
        """(B, S, H) -> (N, H): everything after this runs at the read positions only."""
        shape = self.constant("flat", np.array([-1, self.config.hidden], dtype=np.int64))
        rows = self.node("Reshape", [stream, shape], ["rows"])
        return self.node("Gather", [rows, contract.READS.name], ["picked"], axis=0)

    def _head(self, head: Head, source: str) -> None:
        """(N, H) -> (N, C): affine layers, ReLU between them, float32 throughout."""
        normed = source
        for index, layer in enumerate(head.layers):
            last = index == len(head.layers) - 1
            name = contract.LOGITS.name if last else f"head.{index}"
            source = self._affine(f"head.{index}", layer, source, name)
            if not last:
                source = self.node("Relu", [source], [f"head.{index}.active"])
        if head.naming is not None:
            # a product of its own: with more rows the first one's sums would be other ones
            self._affine("naming", head.naming.layer, normed, contract.ERROR_KINDS_NAME)

    def _affine(self, name: str, layer: Layer, source: str, out: str) -> str:
        """(N, inputs) -> (N, outputs)"""
        inputs = [source, self.constant(f"{name}.weight", layer.read(self.tensors).numpy())]
        bias = layer.read_bias(self.tensors)
        if bias is not None:
            inputs.append(self.constant(f"{name}.bias", bias.numpy()))
        return self.node("Gemm", inputs, [out], transB=1)

    @property
    def cache_type(self) -> str:
        """What keys and values are between runs."""
        return contract.FLOAT

    def model(self, head: Head) -> ModelProto:
        shape = (self.config.layers, self.config.kv_heads, self.config.head_dim)
        graph = helper.make_graph(
            self.nodes,
            "prm",
            [_value(tensor) for tensor in contract.decoder_inputs(*shape, self.cache_type)],
            [
                _value(tensor)
                for tensor in contract.decoder_outputs(*shape, self.cache_type, len(head.kinds))
            ],
            self.initializers,
            value_info=self.shapes,
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
            ir_version=IR_VERSION,
            producer_name="prm-edge",
            producer_version=__version__,
        )


def _value(tensor: contract.Tensor) -> Any:
    return helper.make_tensor_value_info(
        tensor.name, _ELEMENT_TYPES[tensor.type], list(tensor.axes)
    )
