"""What several tests need: a real nats-server, free ports, waiting for an event with a deadline."""
