"""The Jupyter messaging protocol without I/O: parsing, folding outputs, following executions."""
