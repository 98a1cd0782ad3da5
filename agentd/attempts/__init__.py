"""Attempts on real tmux, from their launch to their end, and what is remembered of them."""
