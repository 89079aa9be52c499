"""Runs ``prm-edge score`` in a process of its own, with a fake in the place of the model.

    python job_process.py SECONDS score ...

A record takes SECONDS: hash(problem) decides the scores, so that a doubled or lost record shows.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent


def start(*arguments: object, seconds: float = 0.0, **streams: Any) -> subprocess.Popen[bytes]:
    """Start the command line in a new process."""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, __file__, str(seconds), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        **{"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, **streams},
    )


def main() -> None:
    import fake_scorer

    import prm_edge.cli.score as score
    from prm_edge.cli import main as command_line

    # whoever started the tests may have told them to ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    seconds = float(sys.argv.pop(1))
    score.load_scorer = lambda *a, **k: fake_scorer.fake_scorer(seconds=seconds)  # type: ignore[assignment]
    command_line()


if __name__ == "__main__":
    main()
