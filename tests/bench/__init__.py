"""`make bench`: the whole system as processes with the mock engine, one run, figures as JSON and a table.

CPU is taken from /proc per process, latency from stamps that the mock engine writes into its tokens (both processes
read one monotonic clock). Machines are noisy: compare ratios inside one run, not figures of two machines.
"""
