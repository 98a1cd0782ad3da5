import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the numbers of the simulation, also where the test ran in a worker or passed without a word."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, text in getattr(report, "user_properties", ()) if getattr(report, "when", "") == "call" else ():
                if name == "simulation":
                    terminalreporter.section("simulated time")
                    terminalreporter.write_line(text)
