"""agentd runs AI coding agents, each in a tmux session that an admin can attach to, as `jcard.toml` says."""

__version__ = "0.1.0"
