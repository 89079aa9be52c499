"""How many tokens does a GPU run that nobody reads? Counted, not timed; no GPU is needed.

    python benchmarks/padding.py FILE... [--package PKG]

FILE: records in any form that ``prm-edge formats`` lists, encoded by the package (the built-in one)
and planned as for CUDA. Solutions go a few hundred at a time, as ``score_many`` takes them; the
candidates of a record go together, as ``rank`` does. Beside the plan: batches in the order of the
file, as many rows as fit into one run, each token of each record.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prm_edge.inputs import read_source
from prm_edge.records import decode_line, read_record
from prm_edge.solutions import Candidates, Response, Solution
from prm_edge_runtime import Scorer
from prm_edge_runtime.cache import common_length
from prm_edge_runtime.encoding import Encoded
from prm_edge_runtime.engine import LIMITS
from prm_edge_runtime.plan import plan
from prm_edge_runtime.scorer import AHEAD_RECORDS, AHEAD_TOKENS

CUDA = LIMITS["cuda"]


@dataclass(slots=True)
class Count:
    """``given``: tokens of all records; ``needed``: without what is run once for several."""

    records: int = 0
    given: int = 0
    needed: int = 0
    padding: int = 0
    runs: int = 0
    plain_padding: int = 0
    plain_runs: int = 0

    def add(self, records: list[Encoded]) -> None:
        """Plan records that are run together."""
        lengths = [len(record.ids) for record in records]
        self.records += len(records)
        self.given += sum(lengths)
        for group in plan(records, limits=CUDA):
            own = [lengths[index] for index in group.indices]
            if group.padded:
                self.needed += sum(own)
                self.padding += max(own) * len(own) - sum(own)
                self.runs += 1
                continue
            past = 0
            for at, index in enumerate(group.indices):
                if at:
                    before = records[group.indices[at - 1]].ids
                    past = min(common_length(before, records[index].ids), own[at] - 1)
                self.needed += own[at] - past
                self.runs += -(-(own[at] - past) // CUDA.run_tokens)
        for batch in plain_batches(lengths):
            self.plain_padding += max(batch) * len(batch) - sum(batch)
            self.plain_runs += 1


def plain_batches(lengths: Iterable[int]) -> Iterator[list[int]]:
    """In the order given, as many rows as fit into one run."""
    batch: list[int] = []
    for length in lengths:
        if batch and (len(batch) + 1) * max(*batch, length) > CUDA.run_tokens:
            yield batch
            batch = []
        batch.append(length)
    if batch:
        yield batch


def batches(path: Path, scorer: Scorer) -> Iterator[list[Encoded]]:
    """The records of a file, as they are run."""
    encode = scorer._encoder.encode
    ahead: list[Encoded] = []
    with path.open("rb") as stream:
        for line in read_source(stream, path.name):
            record = read_record(decode_line(line))
            if isinstance(record, Candidates):
                yield [encode(record.problem, steps) for steps in record.candidates]
                continue
            assert isinstance(record, Solution | Response)
            steps = record.steps if isinstance(record, Solution) else scorer.split(record.response)
            ahead.append(encode(record.problem, steps))
            if len(ahead) >= AHEAD_RECORDS or sum(len(r.ids) for r in ahead) >= AHEAD_TOKENS:
                yield ahead
                ahead = []
    if ahead:
        yield ahead


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--package", type=Path)
    arguments = parser.parse_args()
    scorer = Scorer.load(arguments.package, device="cpu", threads=1)
    print(
        "| file | records | tokens | run once for several | padding | runs of tokens, mean "
        "| padding in the file's order |"
    )
    print("|---|" + "---:|" * 6)
    for path in arguments.files:
        count = Count()
        for batch in batches(path, scorer):
            count.add(batch)
        ran = count.needed + count.padding
        print(
            f"| {path.name.split('.')[0]} | {count.records:,} | {count.given:,} "
            f"| {1 - count.needed / count.given:.1%} | {count.padding / ran:.1%} "
            f"| {count.runs:,} of {ran / count.runs:,.0f} "
            f"| {count.plain_padding / (count.given + count.plain_padding):.1%} |"
        )


if __name__ == "__main__":
    main()
