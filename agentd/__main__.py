"""What `python -m agentd` runs."""

from agentd.cli import run

if __name__ == "__main__":
    run()
