"""The mean of checkpoints: every tensor, and nothing that does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from safetensors.torch import save_file  # noqa: E402

from training.average import mean_of  # noqa: E402


def _write(path: Path, value: float, width: int = 3, said: str = "pt") -> Path:
    save_file({"weight": torch.full((2, width), value)}, path, metadata={"format": said})
    return path


def test_mean_of_three(tmp_path: Path) -> None:
    paths = [_write(tmp_path / str(i), value) for i, value in enumerate((1.0, 2.0, 6.0))]
    tensors, said = mean_of(paths)
    assert torch.equal(tensors["weight"], torch.full((2, 3), 3.0))
    assert tensors["weight"].dtype == torch.float32
    assert said == {"format": "pt"}


@pytest.mark.parametrize("other", [{"width": 4}, {"said": "another"}])
def test_what_does_not_fit_is_refused(tmp_path: Path, other: dict[str, object]) -> None:
    paths = [_write(tmp_path / "a", 1.0), _write(tmp_path / "b", 1.0, **other)]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no weights of one kind"):
        mean_of(paths)
