"""The head that forecasts the next token is fitted on weights that stay as they are."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="needs the export extra")

from training.batches import IGNORE, Batch  # noqa: E402
from training.train import fit_forecast  # noqa: E402


def test_the_next_token_head_is_fitted_and_nothing_else() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 12, (4, 9))
    spoken = (ids * 5 + 1) % 12  # what comes next follows from the token
    spoken[:, -1] = IGNORE
    none = torch.full_like(ids, IGNORE)
    batch = Batch(ids, none, none, none, spoken)
    silent = Batch(ids, none, none, none, none)
    table = torch.nn.Embedding(12, 16)
    before = table.weight.detach().clone()
    head = torch.nn.Linear(16, 12, bias=False)
    run = SimpleNamespace(
        model=table, forecast=head, network=lambda model, ids: (model(ids), model(ids))
    )
    fit_forecast(run, itertools.cycle([batch, silent]), updates=300)  # type: ignore[arg-type]
    assert torch.equal(table.weight, before)
    assert table.weight.grad is None
    assert (head(table(ids)).argmax(-1) == spoken)[:, :-1].all()
    assert head.weight.isfinite().all()
