"""How many solutions a plan is chosen with."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the export extra")

from prm_edge_export.quantization.texts import SEARCHED_FEWEST, thinned
from prm_edge_runtime.encoding import Encoded

RECORDS = [Encoded(ids=np.full(70, at), reads=np.array([3]), prompt_tokens=0) for at in range(72)]


@pytest.mark.parametrize(
    ("multiply_adds", "expected"), [(106_000_000, 72), (1_310_000_000, 54), (6_500_000_000, 24)]
)
def test_large_models_choose_with_fewer_solutions(multiply_adds: int, expected: int) -> None:
    found = thinned(RECORDS, multiply_adds)
    assert len(found) == expected >= SEARCHED_FEWEST
    assert {record.ids[0] for record in found} <= set(range(72))
    assert found[0] is RECORDS[0]
    assert found[-1].ids[0] >= 68  # from all over them


def test_few_solutions_stay_all_of_them() -> None:
    assert thinned(RECORDS[:5], 10**12) == RECORDS[:5]
