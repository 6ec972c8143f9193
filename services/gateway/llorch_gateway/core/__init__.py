"""What the gateway decides: admissions, what a stream's reader gets next, what is told about pools. No IO, no clock."""
