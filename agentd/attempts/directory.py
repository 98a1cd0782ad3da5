"""An attempt's directory: its launch script and its lifeline, where the agent user may read and nobody else."""

import contextlib
import os
import stat
from collections.abc import Container

from agentd.attempts.lifeline import Lifeline
from agentd.attempts.script import Script
from agentd.settings import Settings


class AttemptDirectory:
    """One directory under `-run-dir`, for one attempt. What is secret in it exists from `write` to `withdraw_script`.

    With another agent user, the directory is root's (0711) and the files are the agent user's, and his alone.
    """

    def __init__(self, settings: Settings, instance: str, run: str, number: int) -> None:
        self._settings = settings
        self._path = settings.run_dir / f"{instance}-{run}-{number}"
        self.script = self._path / "launch"
        self._fresh = self._path / "launch.new"
        self.fifo = self._path / "lifeline"

    @staticmethod
    def remove_others(
        settings: Settings, instance: str, attempts: Container[tuple[str, int]], runs: Container[str]
    ) -> None:
        """Take away the directories of a dead agentd's attempts, but for these and all of these runs."""
        for path in settings.run_dir.glob(f"{instance}-*-*"):
            run, _, number = path.name.removeprefix(f"{instance}-").rpartition("-")
            if not (run.isalnum() and number.isdecimal()) or run in runs or (run, int(number)) in attempts:
                continue
            AttemptDirectory(settings, instance, run, int(number)).remove()

    def write(self, script: Script) -> Lifeline:
        """Write both, and open our end of the lifeline.

        Raises:
            OSError: if the directory cannot be written.
        """
        user = self._settings.agent_user
        self._path.mkdir(mode=0o700)
        os.mkfifo(self.fifo, 0o600)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(self._fresh, flags, 0o400), "wb") as file:
            file.write(script.text().encode())
            if self._settings.switch_user:
                os.fchown(file.fileno(), user.uid, user.gid)
        if self._settings.switch_user:
            os.chown(self.fifo, user.uid, user.gid, follow_symlinks=False)
            self._path.chmod(0o711)
        lifeline = Lifeline(self.fifo)
        self._fresh.rename(self.script)  # in one go, and last: some shell may wait for it
        return lifeline

    def reopen(self) -> Lifeline:
        """Open our end of the lifeline of an attempt that an earlier agentd has begun; a lost one says nothing more.

        Raises:
            OSError: if it cannot be opened.
        """
        self._path.mkdir(mode=0o711, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            mode = os.lstat(self.fifo).st_mode
            if stat.S_ISDIR(mode):
                self.fifo.rmdir()
            elif not stat.S_ISFIFO(mode):
                self.fifo.unlink()
        with contextlib.suppress(FileExistsError):
            os.mkfifo(self.fifo, 0o600)
        return Lifeline(self.fifo)

    def withdraw_script(self) -> None:
        """Single use: what is unlinked, a late shell, or Up and Enter, do not start (again)."""
        for path in (self._fresh, self.script):
            path.unlink(missing_ok=True)

    def withdraw(self) -> None:
        """Let nothing come of it any more; a launcher that has the lifeline open already goes on."""
        self.withdraw_script()
        self.fifo.unlink(missing_ok=True)

    def remove(self) -> None:
        """Take all of it away; may be called at any time, and again."""
        self.withdraw()
        with contextlib.suppress(OSError):
            self._path.rmdir()
