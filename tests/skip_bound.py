"""A pytest plugin: say how many tests were skipped, and fail when they are too many.

Used by the Makefile: ``python -m pytest -p tests.skip_bound --max-skipped=N``.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--max-skipped",
        type=int,
        default=None,
        metavar="N",
        help="fail when more than N tests are skipped, or when no test ran at all",
    )


def _count(config: pytest.Config, outcome: str) -> int:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return len(reporter.stats.get(outcome, [])) if reporter is not None else 0


def _complaint(config: pytest.Config) -> str | None:
    bound = config.getoption("--max-skipped")
    skipped = _count(config, "skipped")
    if bound is None or config.option.collectonly:
        return None
    if not _count(config, "passed"):
        return "no test passed: nothing was checked"
    if skipped > bound:
        return f"{skipped} tests were skipped, but at most {bound} may be: see the reasons above"
    return None


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.exitstatus == pytest.ExitCode.OK and _complaint(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    bound = config.getoption("--max-skipped")
    if bound is None:
        return
    terminalreporter.write_line(f"skipped tests: {_count(config, 'skipped')} (at most {bound})")
    complaint = _complaint(config)
    if complaint:
        terminalreporter.write_line(complaint, red=True)
