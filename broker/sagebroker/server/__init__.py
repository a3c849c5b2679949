"""The MCP server: tools, what they answer, and the stdio front end.

The only layer that knows MCP. ``app.make_server`` builds the server around a broker;
``stdio.serve_stdio`` runs it for one client. ``failures`` is the only place where a broker's error
becomes an MCP error, ``render`` the only one where a cell becomes text.
"""
