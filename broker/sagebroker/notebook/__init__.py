"""Notebook: a session's transcript as a Jupyter notebook, and what of it a replay can repeat."""
