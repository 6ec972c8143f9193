"""One module per outside thing: child processes, pip, environments, wheels, files, the catalogue."""
