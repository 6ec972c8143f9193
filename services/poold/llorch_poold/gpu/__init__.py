"""What GPUs this host has, and whether they can be used."""
