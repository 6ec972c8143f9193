"""The scheduler: one active process decides which replica runs which queued task."""
