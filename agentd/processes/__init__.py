"""Processes: what runs, and the end of what an attempt left behind."""
