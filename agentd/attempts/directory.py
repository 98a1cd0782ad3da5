"""An attempt's directory: its launch script and its lifeline, where the agent user may read and nobody else."""

import contextlib
import errno
import os
import stat
from collections.abc import Container, Iterable
from pathlib import Path

from agentd.attempts.lifeline import Lifeline
from agentd.attempts.naming import name_of, others
from agentd.attempts.script import Script
from agentd.directories import make_run_dir
from agentd.errors import StartupError
from agentd.settings import Settings


class AttemptDirectory:
    """One directory under `-run-dir`, for one attempt. What is secret in it exists from `write` to `withdraw_script`.

    With another agent user, the directory is root's (0711) and the files are the agent user's, and his alone.
    """

    def __init__(self, settings: Settings, instance: str, run: str, number: int) -> None:
        self._settings = settings
        self._path = settings.run_dir / name_of(instance, run, number)
        self.script = self._path / "launch"
        self._fresh = self._path / "launch.new"
        self.fifo = self._path / "lifeline"

    @staticmethod
    def remove_others(
        settings: Settings,
        instance: str,
        names: Iterable[str],
        attempts: Container[tuple[str, int]],
        runs: Container[str],
    ) -> None:
        """Of what has these names in the run directory, take away all attempts but these, and those of these runs."""
        for run, number in others(names, instance, attempts, runs):
            AttemptDirectory(settings, instance, run, number).remove()

    def write(self, script: Script) -> Lifeline:
        """Write both, and open our end of the lifeline.

        Raises:
            OSError: if the directory cannot be written.
        """
        user = self._settings.agent_user
        self._make()
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
        try:
            self._fresh.rename(self.script)  # in one go, and last: some shell may wait for it
        except OSError:
            lifeline.close()
            raise
        return lifeline

    def reopen(self) -> Lifeline:
        """Open our end of the lifeline of an attempt that an earlier agentd has begun; a lost one says nothing more.

        Raises:
            OSError: if it cannot be opened.
        """
        if not self._path.is_dir():
            self._make()
            self._path.chmod(0o711)
        with contextlib.suppress(FileNotFoundError):
            mode = os.lstat(self.fifo).st_mode
            if stat.S_ISDIR(mode):
                self.fifo.rmdir()
            elif not stat.S_ISFIFO(mode):
                self.fifo.unlink()
        with contextlib.suppress(FileExistsError):
            os.mkfifo(self.fifo, 0o600)
        return Lifeline(self.fifo)

    def withdraw_script(self) -> bool:
        """Single use: what is unlinked, a late shell, or Up and Enter, do not start (again).

        Return whether that is so; on a file system that takes no change, `remove` tries again.
        """
        return _is_unlinked(self._fresh) & _is_unlinked(self.script)

    def withdraw(self) -> bool:
        """Let nothing come of it any more, and return whether that is so.

        A launcher that has the lifeline open already goes on.
        """
        return self.withdraw_script() & _is_unlinked(self.fifo)

    def remove(self) -> None:
        """Take all of it away, as far as possible; may be called at any time, and again."""
        self.withdraw()
        with contextlib.suppress(OSError):
            self._path.rmdir()

    def _make(self) -> None:
        remake_run_dir(self._settings)
        self._path.mkdir(mode=0o700)


def remake_run_dir(settings: Settings) -> None:
    """Make the run directory again, which somebody may have taken away, and judge the one that is there.

    Raises:
        OSError: if it cannot be had.
    """
    try:
        make_run_dir(settings)
    except StartupError as error:
        cause = error.__cause__
        raise OSError(cause.errno if isinstance(cause, OSError) else errno.ENOENT, str(error)) from None


def _is_unlinked(path: Path) -> bool:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True
