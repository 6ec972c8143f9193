"""What orchctl decides without touching anything: restarts, event streams, how things are shown."""
