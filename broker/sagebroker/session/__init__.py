"""Sessions: a client's named workspace, its queue of cells, its kernel and its recovery.

May import ``kernel``, ``protocol``, ``container`` and below; knows nothing of MCP.
"""
