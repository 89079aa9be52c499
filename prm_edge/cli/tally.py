"""What there is to say when a run of ``prm-edge score`` is over.

In: every line that was written, by this run or an earlier one. Out: sentences on stderr.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .progress import Voice
from .words import some

if TYPE_CHECKING:
    from prm_edge.jobs import OutputLine
    from prm_edge.ray.run import Outcome


class Tally:
    """What there is to say about a run when it is over."""

    def __init__(self) -> None:
        from prm_edge.duplicates import DuplicateIds

        self.records = 0
        self.failed = 0
        self.out_of_domain = 0
        self._first_failure = ""
        self._duplicates = DuplicateIds()

    @classmethod
    def of(cls, outcome: Outcome) -> Tally:
        """What there is to say about a run on a cluster."""
        tally = cls()
        tally.records, tally.failed = outcome.records, outcome.failed
        tally.out_of_domain = outcome.out_of_domain
        tally._first_failure = outcome.first_failure or ""
        tally._duplicates.count = outcome.repeated_ids
        return tally

    def add(self, line: OutputLine) -> None:
        """Note one line."""
        self.out_of_domain += line.out_of_domain
        self._note(line.id, None if line.error is None else f"line {line.number}: {line.error}")

    def add_earlier(self, record: dict[str, Any]) -> None:
        """Note one line that an earlier run wrote."""
        from prm_edge.jobs import is_out_of_domain

        self.out_of_domain += is_out_of_domain(record)
        error = record.get("error")
        self._note(
            record.get("id"), None if error is None else f"line {error['line']}: {error['message']}"
        )

    def _note(self, identity: Any, failure: str | None) -> None:
        self.records += 1
        self._duplicates.add(identity)
        if failure is not None:
            if not self.failed:
                self._first_failure = failure
            self.failed += 1

    def say(self, voice: Voice) -> None:
        """Say what the user has to know."""
        records = some(self.records, "record")
        if self.failed:
            first = f"; the first, {self._first_failure}" if self._first_failure else ""
            voice.problem(f"{self.failed} of {records} could not be scored{first}")
        if self.out_of_domain:
            voice.problem(
                f"outside what the built-in model was trained on: {self.out_of_domain} of "
                f"{records}, whose scores are null (out_of_domain); --force scores "
                "them"
            )
        if not self.records:
            voice.event("empty", "the input holds no records")
        if self._duplicates.count:
            known = self._duplicates.first  # not of a run on a cluster
            which = "" if known is None else f" (the first is {known!r})"
            voice.event(
                "duplicates",
                f"{some(self._duplicates.count, 'record', 'has', 'have')} an id that occurred "
                f"before{which}; all of them were scored",
            )
