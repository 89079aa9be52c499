"""External data is appended, aligned, whole or some rows at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs the export extra")

from onnx import numpy_helper

from prm_edge_export.weights import ALIGNMENT, WeightFile
from prm_edge_runtime.errors import ExportError

TABLE = np.arange(4000, dtype=np.float32).reshape(100, 40)


def test_blocks_give_the_bytes_of_the_whole(tmp_path: Path) -> None:
    first = np.ones(300, dtype=np.float64)
    written = []
    for name in ("whole", "blocks"):
        with WeightFile(tmp_path / name) as file:
            file.add("first", first)
            if name == "whole":
                tensor = file.add("table", TABLE)
            else:
                rows = (TABLE[at : at + 33] for at in range(0, 100, 33))
                tensor = file.add_blocks("table", (100, 40), np.dtype(np.float32), rows)
        data = (tmp_path / name).read_bytes()
        place = {entry.key: entry.value for entry in tensor.external_data}
        assert (int(place["offset"]), int(place["length"])) == (ALIGNMENT, TABLE.nbytes)
        assert list(tensor.dims) == [100, 40]
        written.append(data)
    assert written[0] == written[1]
    assert written[0][ALIGNMENT:] == TABLE.tobytes()


def test_small_tensors_stay_in_the_graph(tmp_path: Path) -> None:
    with WeightFile(tmp_path / "data") as file:
        tensor = file.add("shape", np.array([1, 2], dtype=np.int64))
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), [1, 2])
    assert (tmp_path / "data").stat().st_size == 0


def test_blocks_that_are_not_the_whole_are_refused(tmp_path: Path) -> None:
    with (
        WeightFile(tmp_path / "data") as file,
        pytest.raises(ExportError, match=r"table of shape \[100, 40\] was given 15840 bytes"),
    ):
        file.add_blocks("table", (100, 40), np.dtype(np.float32), [TABLE[:99]])
