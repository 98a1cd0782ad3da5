"""The HTTP API: what it answers, how it is served, its socket."""
