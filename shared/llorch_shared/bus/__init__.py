"""The bus: a small port (`port`), its NATS side (`nats`) and an in-memory double (`memory`) that pass one suite."""
