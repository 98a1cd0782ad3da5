"""agentctl: pure modules and the standard library only."""
