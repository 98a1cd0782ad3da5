"""What agentd reads: card, secrets and prompt files, and when it believes them."""
