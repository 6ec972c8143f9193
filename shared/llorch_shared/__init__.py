"""What two or more services need: the wire, the bus, errors, settings, logs. Imports no service."""
