"""The card inside the wheel says what the checkpoint's card says, and names the sources."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "training/checkpoint/README.md"
PACKAGE = ROOT / "runtime/prm_edge_runtime/default_package/README.md"
FROM = "\n## Good for\n"


def test_the_embedded_card_ends_as_the_card_of_the_checkpoint() -> None:
    card, embedded = (path.read_text(encoding="utf-8") for path in (CHECKPOINT, PACKAGE))
    said = card[card.index(FROM) :]
    assert embedded.endswith(said)
    for part in ("## Not good for", "## Trained on", "CogTutorBugs", "CC BY 4.0", "MIT"):
        assert part in said
    assert "](../" not in said, "such a link leads nowhere in a wheel"
