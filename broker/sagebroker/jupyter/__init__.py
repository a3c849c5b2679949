"""Sessions for Jupyter's tools: a thin client of the broker, and the kernel provisioner."""
