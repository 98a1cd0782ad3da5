"""Members of the admin group: since 3.3 a tmux server lets in nobody but its user and root, unless it is told who."""

import grp
import logging
import pwd
from contextlib import suppress

import trio

from agentd.errors import TmuxError, TmuxUnknownError, threads_as_processes
from agentd.settings import Settings
from agentd.tmux.client import Client, Request
from agentd.tmux.protocol import escape_format

_LOOK = 5.0
"""Seconds after which somebody who was added to the group may attach."""

_log = logging.getLogger(__name__)


async def admit_admins(settings: Settings, client: Client) -> None:
    """Have the server admit the group's members, and those added later, for as long as there is this connection.

    Only what runs as another user: who attaches has all that the server's user has.
    """
    gid = settings.admin_gid
    if gid is None or not settings.switch_user:
        return
    known = {settings.agent_user.name, "root"}  # tmux admits them by itself, and says so with an error.
    while True:
        # Directory services can take long; nothing else waits for them.
        members: set[str] = set()
        with suppress(OSError), threads_as_processes():  # without a thread, the next look finds them
            members = await trio.to_thread.run_sync(group_members, gid, abandon_on_cancel=True)
        for name in sorted(members - known):
            known.add(name)
            try:
                await client.ask(Request("server-access", "-a", escape_format(name)))
            except TmuxError as error:
                if "unknown command" in str(error):
                    return  # tmux 3.2 admits whom the socket's mode admits.
                if "already added" not in str(error):
                    _log.warning("%s of the admin group cannot attach: %s", name, error)
            except TmuxUnknownError:
                return
        await trio.sleep(_LOOK)


def group_members(gid: int) -> set[str]:
    """Return who is in a group, be it as the user's own group or as a further one."""
    try:
        further = set(grp.getgrgid(gid).gr_mem)
    except KeyError:
        further = set()
    return further | {user.pw_name for user in pwd.getpwall() if user.pw_gid == gid}
