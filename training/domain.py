"""What the default model has read: the words and signs of its training texts.

    python -m training.domain --data ../shared/data --out training/checkpoint/domain.json

A unit counts as known when it stands in `LEAST` training texts or more. The largest share of
unknown ones is the smallest that keeps 99% of the held-out GSM8K solutions inside.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from pathlib import Path

from prm_edge_runtime.domain import Domain, units

from .generator import stream
from .real import RealMixture, gsm8k

SEED = 20241
SOLUTIONS = 60000
LEAST = 3
KEPT = 0.99


def known(real: RealMixture) -> frozenset[str]:
    """Units of the generator's and the real training texts."""
    seen: Counter[str] = Counter()
    for solution in itertools.islice(stream(SEED), SOLUTIONS):
        texts = [solution.problem, *(line.text for line in solution.lines)]
        seen.update({u.lower() for text in texts for u in units(text)})
    for problem, lines in real.gsm:
        texts = [problem, *(x if isinstance(x, str) else x.text for x in lines)]
        seen.update({u.lower() for text in texts for u in units(text)})
    for move in real.tutor:
        seen.update({u.lower() for text in (move.problem, move.lines[0].text) for u in units(text)})
    return frozenset(unit for unit, count in seen.items() if count >= LEAST)


def fit(data: Path) -> Domain:
    """Fit the domain on training texts and its limit on held-out ones."""
    words = known(RealMixture(data))
    shares = []
    for problem, lines in gsm8k(data, "heldout"):
        texts = [problem, *(x if isinstance(x, str) else x.text for x in lines)]
        found = {u for text in texts for u in units(text)}
        new = [u for u in found if u.lower() not in words and not u[0].isupper()]
        seen = [u for u in found if u.lower() in words]
        shares.append(len(new) / max(1, len(new) + len(seen)))
    shares.sort()
    limit = shares[min(len(shares) - 1, int(KEPT * len(shares)))]
    return Domain(known=words, max_unknown=round(limit + 0.005, 2))


def main() -> None:
    """Parse the command line, fit, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("training/checkpoint/domain.json"))
    args = parser.parse_args()
    domain = fit(args.data)
    args.out.write_bytes(domain.to_json())
    print(f"{len(domain.known)} units, at most {domain.max_unknown:.0%} unknown")


if __name__ == "__main__":
    main()
