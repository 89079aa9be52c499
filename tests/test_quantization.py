"""The arithmetic of int8: rounding, compensation, blocks, and the choice of kinds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the export extra")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from prm_edge_export.quantization import choose, weights
from prm_edge_export.quantization.calibration import Measured
from prm_edge_export.quantization.kinds import COSTS, INT4_MENU, KINDS, LEAST_INT8, MOST_FP32, UNITS
from prm_edge_runtime.ort import open_session

ERROR = st.floats(1e-9, 1e-2)


def matrix(outputs: int, inputs: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))


def correlated(tokens: int, inputs: int) -> torch.Tensor:
    """Activations as models have them: few directions, and a channel that is far larger."""
    rows = matrix(tokens, 8, 1) @ matrix(8, inputs, 2) + 0.1 * matrix(tokens, inputs, 3)
    rows[:, 5] *= 20
    return rows


def quantize(
    weight: torch.Tensor,
    hessian: torch.Tensor | Sequence[torch.Tensor] | None,
    form: weights.BlockForm = weights.BLOCKS8,
) -> tuple[weights.Channels, weights.Blocks]:
    """Per channel and in blocks, compensated where second moments are given."""
    squares = [hessian] if isinstance(hessian, torch.Tensor) else list(hessian or ())
    inputs = weights.Inputs.of(squares)
    return weights.quantize_channels(weight, inputs), weights.quantize_blocks(weight, inputs, form)


@pytest.mark.parametrize("inputs", [32, 100])
def test_quantize_rounds_to_half_a_step(inputs: int) -> None:
    weight = matrix(24, inputs)
    channels, blocks = quantize(weight, None)
    assert channels.values.dtype == torch.int8
    assert int(channels.values.min()) >= -127  # -128 would have no opposite
    error = (channels.restored() - weight).abs()
    assert bool((error <= channels.scales[:, None] * 0.5001).all())
    each = blocks.scales.repeat_interleave(weights.BLOCK, 1)[:, :inputs]
    assert bool(((blocks.restored(inputs) - weight).abs() <= each * 0.5001).all())


def test_quantize_a_row_of_zeros_stays_zero() -> None:
    weight = matrix(4, 32)
    weight[2] = 0
    rows = correlated(64, 32)
    for form in quantize(weight, rows.T @ rows):
        restored = form.restored(32) if isinstance(form, weights.Blocks) else form.restored()
        assert bool((restored[2] == 0).all())
        assert bool(torch.isfinite(restored).all())


def test_quantize_some_rows_at_a_time_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, rows = matrix(48, 96), correlated(400, 96)
    whole = quantize(weight, rows.T @ rows)
    monkeypatch.setattr(weights, "ROWS", 7)
    pieces = quantize(weight, rows.T @ rows)
    for one, other in zip(whole, pieces, strict=True):
        assert one.values.shape == other.values.shape
        # a product of fewer rows may round its last bit otherwise, and that tip an integer over
        assert float((one.values != other.values).float().mean()) < 1e-3
        torch.testing.assert_close(one.scales, other.scales, rtol=0, atol=0)


def test_compensation_loses_less_of_the_output() -> None:
    weight, rows = matrix(48, 96), correlated(400, 96)
    plain = quantize(weight, None)
    better = quantize(weight, rows.T @ rows)
    wanted = rows @ weight.T

    def lost(restored: torch.Tensor) -> float:
        return float(((rows @ restored.T - wanted) ** 2).mean())

    assert lost(better[0].restored()) < 0.5 * lost(plain[0].restored())
    assert lost(better[1].restored(96)) < 0.5 * lost(plain[1].restored(96))


def test_compensation_bears_inputs_that_are_never_there() -> None:
    weight, rows = matrix(8, 32), correlated(100, 32)
    rows[:, [3, 7]] = 0
    channels, _ = quantize(weight, rows.T @ rows)
    assert bool(torch.isfinite(channels.restored()).all())


def test_rounding_twice_is_254_times_as_fine() -> None:
    rows = correlated(50, 64)
    scale = rows.abs().amax(dim=1, keepdim=True) / 127
    assert bool(((weights.round_tokens(rows) - rows).abs() <= 0.5001 * scale).all())
    twice = (weights.round_tokens_twice(rows) - rows).abs()
    assert bool((twice <= 0.51 * scale / 254).all())
    assert bool((weights.round_tokens_twice(torch.zeros(2, 8)) == 0).all())


# --- the choice


@st.composite
def layers(draw: st.DrawFn) -> list[Measured]:
    """Up to 8 layers whose linears lose less the more they cost."""
    found = []
    for layer in range(draw(st.integers(1, 8))):
        for unit in UNITS:
            errors = sorted((draw(ERROR) for _ in KINDS[:-1]), reverse=True)
            found.append(
                Measured(
                    layer=layer,
                    unit=unit.name,
                    multiply_adds=draw(st.integers(1000, 50_000)),
                    strength=None,
                    compensated=True,
                    errors={**dict(zip(KINDS, errors, strict=False)), "fp32": 0.0},
                )
            )
    return found


@pytest.mark.parametrize(("allowed", "one_pass"), [(7.5, True), (2.0, False)])
def test_choose_leaves_one_pass_only_where_it_must(allowed: float, one_pass: bool) -> None:
    errors = {"int8": 1.0, "int8x2": 0.1, "fp32": 0.0}
    units = [
        Measured(
            layer=layer, unit="down", multiply_adds=100, strength=None, compensated=True,
            errors=errors,
        )
        for layer in range(10)
    ]  # fmt: skip
    plan = choose.choose(units, allowed)
    assert choose.total_error(units, plan) <= allowed
    assert (choose.shares(units, plan)["int8"] >= LEAST_INT8) is one_pass


@given(units=layers(), share=st.floats(0.0, 1.2))
@settings(max_examples=30, deadline=None)
def test_choose_keeps_its_shares_and_its_word(units: list[Measured], share: float) -> None:
    everything = choose.total_error(units, choose.cheapest(units))
    plan = choose.choose(units, share * everything)
    shares = choose.shares(units, plan)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["int8"] + shares["int8x2"] >= LEAST_INT8
    assert shares["fp32"] <= MOST_FP32
    if share >= 1:
        assert plan == choose.cheapest(units)
    # what is allowed is reached, or nothing that may still be changed would help
    more = choose.choose(units, 0.0)
    assert choose.cost(units, plan) <= choose.cost(units, more)
    if choose.total_error(units, more) < share * everything:
        assert choose.total_error(units, plan) <= share * everything * (1 + 1e-9)


def test_choose_pays_where_most_error_goes() -> None:
    errors = {"int8": 1e-3, "int8x2": 1e-4, "fp32": 0.0}
    units = [
        Measured(
            layer=layer,
            unit=unit.name,
            multiply_adds=1000,
            strength=None,
            compensated=True,
            errors={
                k: v * (50 if (layer, unit.name) == (2, "down") else 1) for k, v in errors.items()
            },
        )
        for layer in range(4)
        for unit in UNITS
    ]
    plan = choose.choose(units, 0.03)
    assert {at for at, kind in plan.items() if kind != "int8"} == {(2, "down")}
    assert choose.cost(units, plan) == pytest.approx(1000 * (15 + COSTS[plan[2, "down"]]))


# --- 4 bits


def test_int4_uses_all_sixteen_integers_and_packs_two_in_a_byte() -> None:
    weight = matrix(24, 300)
    _, blocks = quantize(weight, None, weights.BLOCKS4)
    assert blocks.values.shape == (24, 3, 128)
    assert (int(blocks.values.min()), int(blocks.values.max())) == (0, 15)
    packed = blocks.packed()
    assert packed.shape == (24, 3, 64)
    assert torch.equal(packed & 15, blocks.values[..., ::2])
    assert torch.equal(packed >> 4, blocks.values[..., 1::2])
    # a block's largest weight is cut off by a quarter at most
    cut = (blocks.restored(300) - weight).abs() / weight.abs().amax()
    assert float(cut.max()) < 0.27


def test_int4_of_zeros_is_zeros() -> None:
    weight = matrix(4, 256)
    weight[2] = 0
    weight[1, :128] = 0
    rows = correlated(64, 256)
    rows[:, 7] = 0  # an input that never is anything
    for hessian in (None, rows.T @ rows):
        _, blocks = quantize(weight, hessian, weights.BLOCKS4)
        restored = blocks.restored(256)
        assert bool((restored[2] == 0).all())
        assert float(restored[1, :128].abs().max()) < 1e-20  # whatever errors are passed on
        assert bool(torch.isfinite(restored).all())


def test_int4_scales_lose_less_than_plain_ones_and_compensation_less_still() -> None:
    weight, rows = matrix(48, 256), correlated(600, 256)

    def lost(restored: torch.Tensor) -> float:
        return float((rows @ (restored - weight).T).norm() / (rows @ weight.T).norm())

    plain = lost(weights.round_blocks(weight, weights.BLOCKS4).restored(256))
    scales = weights.least_error_scales(weight, weights.BLOCKS4, (rows**2).sum(0))
    each = scales.repeat_interleave(128, dim=1)
    chosen = lost((weight / each).round().clamp(-8, 7) * each)
    _, blocks = quantize(weight, rows.T @ rows, weights.BLOCKS4)
    assert lost(blocks.restored(256)) < 0.7 * chosen < chosen < plain


def test_compensation_in_blocks_of_inputs_loses_less_than_none() -> None:
    """As for more inputs than fit one Hessian: its blocks on the diagonal."""
    weight, rows = matrix(48, 256), correlated(600, 256)
    squares = [part.T @ part for part in torch.split(rows, 128, dim=1)]

    def lost(restored: torch.Tensor) -> float:
        return float((rows @ (restored - weight).T).norm())

    channels, blocks = quantize(weight, squares, weights.BLOCKS4)
    none, without = quantize(weight, None, weights.BLOCKS4)
    whole, _ = quantize(weight, rows.T @ rows, weights.BLOCKS4)
    assert lost(blocks.restored(256)) < lost(without.restored(256))
    assert lost(whole.restored()) < lost(channels.restored()) < lost(none.restored())


@pytest.mark.parametrize("inputs", [128, 200])
def test_int4_is_what_the_operator_computes(inputs: int, tmp_path: Path) -> None:
    """And no row depends on how many there are, as long as their number is even."""
    weight, rows = matrix(24, inputs), correlated(40, inputs)
    _, blocks = quantize(weight, rows.T @ rows, weights.BLOCKS4)
    node = helper.make_node(
        "MatMulNBits", ["rows", "blocks", "scales"], ["out"], domain="com.microsoft",
        K=inputs, N=24, bits=4, block_size=128, accuracy_level=4,
    )  # fmt: skip
    constants = [
        numpy_helper.from_array(blocks.packed().numpy(), "blocks"),
        numpy_helper.from_array(blocks.scales.reshape(-1).numpy(), "scales"),
    ]
    floats = TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("rows", floats, ["M", inputs])],
        [helper.make_tensor_value_info("out", floats, ["M", 24])],
        constants,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    session = open_session(tmp_path / "model.onnx", device="cpu", threads=1)
    whole = session.run(None, {"rows": rows.numpy()})[0]
    rounded = weights.round_token_blocks(rows, weights.BLOCKS4.block)
    expected = rounded @ blocks.restored(inputs).T
    np.testing.assert_allclose(whole, expected.numpy(), rtol=1e-3, atol=2e-2)
    for count in (2, 4, 16, 30, 38):
        part = session.run(None, {"rows": rows[:count].numpy()})[0]
        np.testing.assert_array_equal(part, whole[:count])


def test_int4_keeps_three_quarters_of_the_weights_in_four_bits() -> None:
    units = [
        Measured(
            layer=layer,
            unit=unit.name,
            multiply_adds=100,
            strength=None,
            compensated=True,
            errors={"int4": 0.01 * (layer + 1), "int8x2": 0.0001, "fp32": 0.0},
        )
        for layer in range(4)
        for unit in UNITS
    ]
    plan = choose.choose(units, 0.0, INT4_MENU)
    shares = choose.shares(units, plan, INT4_MENU)
    assert shares == {"int4": 0.75, "int8x2": 0.25}
    # the layer that loses most is the one that gets 8 bits
    assert {layer for (layer, _), kind in plan.items() if kind == "int8x2"} == {3}
