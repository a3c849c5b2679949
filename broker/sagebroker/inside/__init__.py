"""What runs in the container: the keeper (PID 1) and the kernel's bootstrap.

Mounted read-only into any image that has ipykernel, and started as a script; it imports nothing
else of this project and nothing else imports it. Must run on Python 3.10 and later.
"""
