"""What `make demo` shows: 24 real jobs, from this computer through the relay on this computer and home again."""
