import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from agentd.card import Agent
from agentd.launch import TmuxAttempt, TmuxSessions
from agentd.processes import Scanner
from agentd.resolve import EffectiveAgent
from agentd.sessions import AttemptRequest
from agentd.settings import Settings
from agentd.tmux import Tmux, open_tmux


class Asked:
    """What tmux was asked, by the first word of each command."""

    def __init__(self, tmux: Tmux, monkeypatch: pytest.MonkeyPatch) -> None:
        self._words: list[str] = []
        real = tmux.command

        async def command(*words: str, **options: Any) -> tuple[str, ...]:
            self._words.append(words[0])
            return await real(*words, **options)

        monkeypatch.setattr(tmux, "command", command)

    def since(self) -> list[str]:
        """The commands since the last time that somebody asked."""
        words, self._words = self._words, []
        return words


async def test_commands_of_an_attempt(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch or a restart is seven commands to tmux, a stop four; the end of an agent, known or swept, is none."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", shutil.which("bash") or "/bin/sh")
    settings.run_dir.mkdir(mode=0o711)
    async with open_tmux(settings) as tmux:
        asked = Asked(tmux, monkeypatch)
        sessions = TmuxSessions(settings, tmux, Scanner(os.geteuid()), time.time)

        def attempt(number: int, previous: TmuxAttempt | None, *argv: str) -> TmuxAttempt:
            effective = EffectiveAgent(
                agent=Agent(name="a", harness="custom", session="a"),
                argv=argv,
                env={"SECRET": "x" * 1000},
                workdir=str(tmp_path),
                digest="d",
            )
            return sessions.attempt(
                AttemptRequest(
                    effective=effective,
                    run="abc",
                    number=number,
                    restarts=number - 1,
                    deadline=None,
                    typed=True,
                    previous=previous,
                )
            )

        with trio.fail_after(30):
            first = attempt(1, None, "sh", "-c", "read x")
            await first.launch()
            assert asked.since() == [
                *("list-panes", "new-session", "set-option", "set-option", "send-keys", "send-keys")
            ]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(first.ended)
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert asked.since() == ["set-option"], "the record of the start, off the way of the launch"
                await tmux.command("send-keys", "-t", "=a:", "Enter")
                asked.since()
            await first.sweep()
            assert asked.since() == []
            second = attempt(2, first, "sleep", "1000")
            await second.launch()
            assert asked.since() == [
                *("send-keys", "respawn-pane", "list-panes", "set-option", "send-keys", "send-keys")
            ]
            await second.interrupt(again=False)
            assert asked.since() == ["copy-mode", "send-keys"]
            await second.ended()
            await second.sweep()
            await second.close()
            assert asked.since() == ["set-option", "kill-pane", "kill-session"]
