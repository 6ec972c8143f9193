"""Faults from a seed, clients that write down what they saw, and a checker that decides from their history alone.

`plan` and `asks` make what will happen from a seed; `nemesis` and `clients` do it to a real system; `gather` reads what
is left when it has settled; `checks` decides; `report` tells. `python -m chaos --help`, or `make chaos`.
"""
