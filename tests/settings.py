"""Settings for tests: everything below one directory, and agents as whoever runs the tests."""

import os
import pwd
from pathlib import Path
from typing import Any

import attrs

from agentd.settings import AgentUser, Settings


def settings_below(top: Path, **changes: Any) -> Settings:
    """Make settings; a test changes what it is about."""
    settings = Settings(
        config=top / "jcard.toml",
        secret_dir=top / "secrets",
        tmux_socket=top / "tmux.sock",
        api_socket=top / "api.sock",
        run_dir=top / "run",
        debug=False,
        keep_agents=False,
        agent_user=agent_user(pwd.getpwuid(os.geteuid())),
        switch_user=False,
        admin_gid=None,
        tmux="tmux",
        sudo=None,
        tmux_unit=None,
        systemctl=None,
        limits={},
        default_workdir=str(top),
    )
    return attrs.evolve(settings, **changes)


def agent_user(account: pwd.struct_passwd, **changes: Any) -> AgentUser:
    """Describe an account as one that agents run as."""
    user = AgentUser(
        name=account.pw_name,
        uid=account.pw_uid,
        gid=account.pw_gid,
        groups=(account.pw_gid,),
        home=account.pw_dir,
        shell=account.pw_shell,
    )
    return attrs.evolve(user, **changes)
