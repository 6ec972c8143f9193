"""Changes of the desired state, the same for every door: command line, HTTP and bus."""
