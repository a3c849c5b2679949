"""One running kernel: its connection, its channels, its heartbeat and how it is stopped.

May import ``protocol``, ``container`` and below. ZeroMQ is known here and nowhere else.
"""
