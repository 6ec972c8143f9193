"""The node agent: runs engines on this host's devices and streams their tokens onto the bus."""
