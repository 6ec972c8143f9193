"""A discrete-event cluster around the scheduler's own core: what the policy does with a load, before there is one.

The core is the very one that decides live, fed by the same events and obeyed by the same effects. Bus, nodes, engines
and clients are models. Everything but `command` and `__main__` is pure: a scenario and a seed in, a result out, and
equal inputs give equal bytes.
"""
