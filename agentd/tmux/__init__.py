"""The tmux server: the connection to it, its unit, its socket, whom it lets in."""
