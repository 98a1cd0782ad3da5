"""The card: its keys, and how it is read into agents."""
