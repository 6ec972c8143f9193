"""Token streams from the bus to their readers, as bytes: one wildcard subscription, a dict, a reader per response."""
