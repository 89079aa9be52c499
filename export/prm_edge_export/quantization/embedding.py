"""The embedding in int8: one scale per row, in float32 once a row is picked.

In: a decoder's builder. Out: the name of the embedded tokens in its graph. V vocabulary, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from prm_edge_runtime import contract

from ..graph import DecoderBuilder
from ..heads import EMBEDDING
from .weights import LEVELS

SMALLEST: Final = 1e-30  # of a scale: a row of zeros has one too


def embed_in_int8(builder: DecoderBuilder) -> str:
    """Rows of int8, each with its scale.

    ::

        input_ids -+-> Gather(int8 (V,H)) -> Cast -+
                   |                               * -> (B,S,H)
                   +-> Gather(scales (V,1)) -------+
    """
    shape = (builder.config.vocab, builder.config.hidden)
    scales = np.empty((shape[0], 1), dtype=np.float32)
    gain = np.float32(builder.config.embedding_scale)

    def rounded() -> Iterator[NDArray[np.int8]]:
        start = 0
        for block in builder.tensors.row_blocks(EMBEDDING, shape):
            rows = block * gain
            scale = np.maximum(abs(rows).max(axis=1, keepdims=True) / LEVELS, SMALLEST)
            scales[start : start + len(rows)] = scale
            start += len(rows)
            yield np.rint(rows / scale).astype(np.int8)

    # the plain builder's own rows: whoever folds and rounds its float embedding has none here
    values = DecoderBuilder.rows(builder, "embedding", shape, np.int8, rounded())
    ids = contract.INPUT_IDS.name
    picked = builder.node("Gather", [values, ids], ["embedded.int8"], axis=0)
    floats = builder.node("Cast", [picked], ["embedded.float"], to=TensorProto.FLOAT)
    table = builder.constant("embedding.scales", scales)
    scale = builder.node("Gather", [table, ids], ["embedded.scale"], axis=0)
    return builder.node("Mul", [floats, scale], ["embedded"])
