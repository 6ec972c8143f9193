"""A task's token stream as one reader gets it, whoever reads: a gateway for its clients, a bus client for itself."""
